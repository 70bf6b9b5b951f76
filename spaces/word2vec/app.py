"""A Space that shows what word vectors know: neighbours, analogies, a map of chosen words.

MODEL_ID=you/word2vec python app.py   # a Hub name or a folder; in a clone, pretrained/word2vec
"""

import difflib
import re

import gradio as gr
import space
import torch
from matplotlib.figure import Figure
from transformers import AutoModel, AutoTokenizer

MAX_WORD = 50  # characters
MAX_MAP = 600  # characters of the map's words
MAX_MAP_WORDS = 60
MAX_NEIGHBOURS = 30
SUGGESTIONS = 3
APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"  # as in print; the words have plain ones
A_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")  # letters of any language, apostrophes inside
MAP = "king queen prince princess father mother son daughter england france london paris"
ABOUT = """
Each word is a point in a space of {size} numbers. Words that stand in the same company come to lie
near each other: the model has read nothing but running text, and nobody told it what a word means.

- **Neighbours**: the words at the smallest angle, with its cosine (1: the same direction).
- **Analogies**: what is to *c* as *a* is to *b*? The word nearest to a - b + c, the three left out.
- **Map**: the two directions in which the chosen words differ most (their principal components);
  most of what the vectors know lies in the others.

It knows the words of its text only, and has that text's prejudices.
"""


class Vectors:
    """Words and their vectors of length 1."""

    def __init__(self, model, tokenizer):
        vectors = model.embed_tokens.weight.detach().float()
        self.unit = torch.nn.functional.normalize(vectors, dim=1)
        self.ids = tokenizer.get_vocab()
        self.words = {i: word for word, i in self.ids.items()}
        self.unknown = tokenizer.unk_token_id

    def id_of(self, text: str, label: str) -> int:
        """The id of a word.

        The tokenizer is not asked: it would leave out what is no letter, and take `âme` for `me`.

        Raises:
            space.Problem: it is no single word, or not known; with what it could have been.
        """
        word = plain(text).strip()
        if self.knows(word):
            return self.ids[word]
        letters = word.replace("'", "", 1)
        if not (letters.isascii() and letters.isalpha()):
            hint = self.suggestion(word) or "."
            raise space.Problem(f"{label} needs one word of the letters a to z{hint}")
        raise space.Problem(self.advice(word))

    def knows(self, word: str) -> bool:
        """Whether a word, in small letters, has a vector."""
        return self.ids.get(word, self.unknown) != self.unknown

    def suggestion(self, word: str) -> str:
        """How a sentence about an unknown word ends: with what was meant, or empty if unclear."""
        near = difflib.get_close_matches(word, self.ids, n=SUGGESTIONS, cutoff=0.7)
        near = [w for w in near if self.knows(w)]
        return f". Did you mean {' or '.join(near)}?" if near else ""

    def advice(self, word: str) -> str:
        """What to say of a word that is not known."""
        hint = self.suggestion(word) or ". Try a commoner one."
        return f"The model has no vector for {word}{hint}"

    def nearest(self, vector: torch.Tensor, number: int, without: list[int]) -> list[list]:
        """The nearest words and their cosines."""
        scores = self.unit @ torch.nn.functional.normalize(vector, dim=0)
        scores[[self.unknown, *without]] = -2
        values, ids = scores.topk(min(number, len(scores) - 1 - len(set(without))))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return [[self.words[i], round(value, 3)] for i, value in pairs]

    def neighbours(self, word: str, number: int) -> list[list]:
        """Words near a word."""
        i = self.id_of(word, "Word")
        return self.nearest(self.unit[i], number, [i])

    def analogy(self, a: str, b: str, c: str, number: int) -> list[list]:
        """Words near a - b + c."""
        ids = [self.id_of(word, label) for word, label in ((a, "a"), (b, "b"), (c, "c"))]
        x, y, z = self.unit[ids]
        return self.nearest(x - y + z, number, ids)

    def map(self, text: str) -> Figure:
        """The two principal components of the chosen words; of unknown ones it warns."""
        words = dict.fromkeys(A_WORD.findall(plain(text)))
        known = [self.ids[word] for word in words if self.knows(word)]
        for word in words:
            if not self.knows(word):
                space.warn(self.advice(word))
                break  # one is enough: the others may be of another language as well
        if not 3 <= len(known) <= MAX_MAP_WORDS:
            raise space.Problem(
                f"A map needs from 3 to {MAX_MAP_WORDS} different words that the model knows; "
                f"these are {len(known)}."
            )
        points = self.unit[known]
        points = points - points.mean(0)
        # (words, size) = U S V^T: the first two columns of U S are the places.
        u, s, _ = torch.linalg.svd(points, full_matrices=False)
        places = (u * s)[:, :2].numpy()
        figure = Figure(figsize=(8, 6), layout="constrained")
        axes = figure.subplots()
        axes.scatter(*places.T, s=14, color="teal")
        for i, place in zip(known, places, strict=True):
            axes.annotate(self.words[i], place, xytext=(4, 3), textcoords="offset points")
        axes.set(xticks=[], yticks=[])
        axes.margins(0.12)
        return figure


def plain(text: str) -> str:
    """A text in small letters and with plain apostrophes, as the words of the model are."""
    return text.lower().replace(APOSTROPHE, "'")


def facts(vectors: Vectors, source: space.Source) -> str:
    """One line on the model: its size and, if it has one, its score."""
    run = source.metrics()
    count, size = vectors.unit.shape
    line = f"**{count - 1:,}** words · vectors of **{size}** numbers"
    score = run.get("metrics", {}).get("wordsim353")
    if isinstance(score, float):
        line += f" · WordSim-353 **{score:.3f}**"
    return line


def build(vectors: Vectors, source: space.Source) -> gr.Blocks:
    """The page."""

    def box(label, value, **options):
        return space.bounded(gr.Textbox(value, label=label, max_length=MAX_WORD, **options))

    def slider():
        return space.bounded(
            gr.Slider(1, MAX_NEIGHBOURS, 10, step=1, precision=0, label="How many", buttons=[])
        )

    def table():
        return gr.Dataframe(headers=["word", "cosine"], label="Nearest", interactive=False)

    with space.page("Word vectors") as blocks:
        gr.Markdown(
            "# Word vectors\nWord2Vec, written by hand: what a word means, by the company it keeps."
        )
        gr.Markdown(facts(vectors, source), elem_classes="facts")
        with gr.Tab("Neighbours"), gr.Row():
            with gr.Column(min_width=280):
                word, number = box("Word", "night"), slider()
                find = gr.Button("Find", variant="primary")
                gr.Examples(
                    [["night"], ["brother"], ["seven"], ["france"]],
                    [word],
                    api_visibility="private",
                )
            with gr.Column(min_width=280):
                near = table()
        with gr.Tab("Analogies"), gr.Row():
            with gr.Column(min_width=280):
                a, b, c = box("a", "king"), box("minus b", "man"), box("plus c", "woman")
                how_many = slider()
                solve = gr.Button("Solve", variant="primary")
            with gr.Column(min_width=280):
                solved = table()
        with gr.Tab("Map"):
            chosen = space.bounded(
                gr.Textbox(MAP, label="Words", lines=2, max_lines=6, max_length=MAX_MAP)
            )
            draw = gr.Button("Draw", variant="primary")
            drawn = gr.Plot(label="Map")
        with gr.Accordion("About", open=False):
            gr.Markdown(ABOUT.format(size=vectors.unit.shape[1]))
        shared = {"concurrency_id": "look"}
        gr.on(
            [find.click, word.submit],
            vectors.neighbours,
            [word, number],
            near,
            api_name="neighbours",
            **shared,
        )
        solve.click(vectors.analogy, [a, b, c, how_many], solved, api_name="analogy", **shared)
        draw.click(vectors.map, chosen, drawn, api_name="map", **shared)
    return blocks


if __name__ == "__main__":
    space.use_all_cores()
    model_source = space.Source.from_environment("word2vec")
    loaded = model_source.load(AutoModel, AutoTokenizer)
    space.launch(build(Vectors(*loaded), model_source))
