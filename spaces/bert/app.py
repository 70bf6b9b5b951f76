"""A Space in which BERT fills in blanks, and shows which words decide what it thinks of a sentence.

    MODEL_ID=you/bert SENTIMENT_MODEL_ID=you/bert_sst2 python app.py

Both are Hub names or folders; in a clone, pretrained/bert and pretrained/bert_sst2. Without the
second, the page fills in blanks only.

How much a word decides is found by taking it away: the same text is read once more with [MASK] in
the word's place (Li et al. 2016, "Understanding neural networks through representation erasure").
"""

import random
import re
from dataclasses import dataclass
from itertools import groupby

import gradio as gr
import painting
import space
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

MAX_TEXT = 500  # characters
MAX_TOKENS = 256  # of a text, even if the model takes more: it is read once for each of its words
MAX_BLANKS = 4
MAX_NAMED = 20  # words in a warning
TOP = 5  # guesses for a blank; words in the table
FULL = 2.0  # change of the log-odds that has the full colour
FAINTEST = 0.15  # colour of a guess of which the model is not sure at all
BLANK = "[MASK]"
BLANKS = {
    "The old man": "The old [MASK] sat by the fire and told of his youth.",
    "A door": "He opened the [MASK] and went out into the night.",
    "A capital": "London is the capital of [MASK].",
    "A pronoun": "The king was angry, and his wife was afraid of [MASK].",
    "Two at once": "She was very [MASK] to see her [MASK] again.",
}
SENTENCES = {
    "Kind": "A gorgeous, witty, seductive movie.",
    "Unkind": "The plot is a mess, and the jokes fall flat.",
    "Not": "It is not a bad film, and not a boring one.",
    "But": "The actors are wonderful, but the story is dull and far too long.",
}
CSS = """
.guesses:not(:has(.confidence-set)), .decisive:not(:has(td)) {display: none !important}  /* yet */
#sentences .label {color: inherit}
"""
ABOUT = """
- **Fill in the blanks**: BERT reads a text from both sides, and has learned by guessing words that
  were hidden. A probability is its own belief: what it puts into a blank is likely, not true.
  Several blanks are guessed each by itself; their guesses may not go together.
- It knows **{pieces:,} word pieces**, words and parts of words, in small letters and without
  accents. One that begins with ## goes on with the word before it.
"""
ABOUT_SENTIMENT = f"""
- **Sentiment**: a second model, which went on from such a first one with sentences that people had
  judged. **How much a word decides**: the text is read once more with {BLANK} in the word's place,
  and the odds of the two sides are compared. With the word they are exp(x) times as high as without
  it; x is the number in the table, and from {FULL:g} on the colour is full. Two words that say the
  same stand in for each other, so that neither may seem to matter.
"""


@dataclass
class Word:
    """A word of a text, or a mark between words.

    Args:
        start, end: its characters in the text.
        places: its tokens.
    """

    start: int
    end: int
    places: list[int]


def painted(text: str, words: list[Word], shown: list[str], values: list[float]) -> str:
    """A text in which something else may stand in some words' places, painted by these values."""
    pieces, shades, done = [], [], 0
    for word, piece, value in zip(words, shown, values, strict=True):
        pieces += [text[done : word.start], piece]
        shades += [0.0, value]
        done = word.end
    return painting.painted([*pieces, text[done:]], [*shades, 0.0])


class Reader:
    """A model and its tokenizer."""

    def __init__(self, model, tokenizer):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # What is stored in bf16 to be small is faster in fp32 on most processors.
        self.model = model.float().to(self.device).eval()
        self.tokenizer = tokenizer
        self.limit = min(MAX_TOKENS, model.config.max_position_embeddings)

    def read(self, text: str) -> tuple[torch.Tensor, list[Word]]:
        """A text as tokens, (1, time), and its words; warns of what the model does not read.

        Raises:
            space.Problem: nothing in the text is known to the model.
        """
        encoding = self.tokenizer(
            text,
            truncation=True,
            max_length=self.limit,
            return_overflowing_tokens=True,  # the first row is what fits, others are the rest
            return_offsets_mapping=True,
        )
        ids, spans = encoding["input_ids"][0], encoding["offset_mapping"][0]
        numbers = encoding.word_ids(0)  # of each token's word; None for [CLS] and [SEP]
        words = []
        for number, group in groupby(range(len(ids)), key=numbers.__getitem__):
            places = list(group)
            if number is not None:
                words.append(Word(spans[places[0]][0], spans[places[-1]][1], places))
        unknown = [word for word in words if ids[word.places[0]] == self.tokenizer.unk_token_id]
        if words and len(unknown) == len(words):
            raise space.Problem(
                "The model knows none of these words; write in the language that it has learned."
            )
        if unknown:
            named = dict.fromkeys(text[word.start : word.end] for word in unknown)
            listed = " ".join(list(named)[:MAX_NAMED])
            space.warn(f"The model has never seen these, and reads [UNK] in their place: {listed}")
        if len(encoding["input_ids"]) > 1:
            kept = sum(len(word.places) for word in words)
            space.warn(f"The model reads only the first {kept} word pieces of this text.")
        return torch.tensor([ids], device=self.device), words


class Filler(Reader):
    """A model that guesses what stands in a blank."""

    def blanks(self, text: str) -> str:
        """The text with its blanks as the tokenizer writes them, also where it says [mask].

        Raises:
            space.Problem: there are too many.
        """
        text, count = re.subn(re.escape(BLANK), self.tokenizer.mask_token, text, flags=re.I)
        if count > MAX_BLANKS:
            raise space.Problem(f"There are {count} blanks; write at most {MAX_BLANKS}.")
        return text

    def hide(self, text: str) -> str:
        """The text with one word more, drawn by chance, as a blank.

        Raises:
            space.Problem: there is no word left, or no room for another blank.
        """
        mask = self.tokenizer.mask_token
        text = self.blanks(text)
        if text.count(mask) == MAX_BLANKS:
            raise space.Problem(f"There are {MAX_BLANKS} blanks already, which is the most.")
        room = MAX_TEXT - len(text)
        words = [
            found
            for found in re.finditer(rf"{re.escape(mask)}|\w+", text)
            if found[0] != mask and len(mask) - len(found[0]) <= room
        ]
        if not words:
            raise space.Problem("There is no word here that could be hidden.")
        start, end = random.choice(words).span()
        return text[:start] + mask + text[end:]

    @torch.inference_mode()
    def fill(self, text: str):
        """The text with the likeliest guess in each blank, as HTML; then the guesses for each.

        Raises:
            space.Problem: there is no blank, or none that is read, or too many.
        """
        text = self.blanks(text)
        ids, words = self.read(text)
        mask = self.tokenizer.mask_token_id
        blanks = [word for word in words if ids[0, word.places[0]] == mask]
        if not blanks and self.tokenizer.mask_token in text:
            raise space.Problem(f"No {BLANK} is in what the model reads: shorten the text.")
        if not blanks:
            raise space.Problem(f"Write {BLANK} where a word is missing, or press “Hide a word”.")
        places = [word.places[0] for word in blanks]
        best = self.model(input_ids=ids).logits[0, places].softmax(-1).topk(TOP)  # (blanks, TOP)
        guesses = [
            {self.tokenizer.decode([token]).strip(): p for token, p in zip(*row, strict=True)}
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        likeliest = [next(iter(guess)) for guess in guesses]
        values = [FAINTEST + (1 - FAINTEST) * max(guess.values()) for guess in guesses]
        none = [{}] * (MAX_BLANKS - len(guesses))
        return painted(text, blanks, likeliest, values), *guesses, *none


class Judge(Reader):
    """A model that says of which class a text is."""

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        self.names = [model.config.id2label[i] for i in range(model.config.num_labels)]

    @torch.inference_mode()
    def judge(self, text: str):
        """The probability of each class, the painted text as HTML, and the most decisive words.

        Raises:
            space.Problem: there is no text.
        """
        ids, words = self.read(text)
        mask = self.tokenizer.mask_token_id
        if all(ids[0, word.places[0]] == mask for word in words):  # or there are none
            raise space.Problem("Write a sentence first.")
        copies = ids.repeat(1 + len(words), 1)  # (1 + words, time): as it is, and without each
        for copy, word in zip(copies[1:], words, strict=True):
            copy[word.places] = mask
        scores = self.model(input_ids=copies).logits  # (1 + words, classes)
        # Of two classes the second one, so that its colour is always the same.
        side = 1 if len(self.names) == 2 else int(scores[0].argmax())
        others = [i for i in range(len(self.names)) if i != side]
        odds = scores[:, side] - scores[:, others].logsumexp(-1)  # log of p / (1 - p)
        effects = (odds[0] - odds[1:]).tolist()  # (words,)
        shown = [text[word.start : word.end] for word in words]
        page = painted(text, words, shown, [effect / FULL for effect in effects])
        table = sorted(zip(shown, effects, strict=True), key=lambda row: -abs(row[1]))[:TOP]
        chances = dict(zip(self.names, scores[0].softmax(-1).tolist(), strict=True))
        rows = [[word, f"{effect:+.2f}"] for word, effect in table]
        return chances, page + self.legend(side), rows

    def legend(self, side: int) -> str:
        """What the colours mean, as HTML."""
        against = self.names[1 - side] if len(self.names) == 2 else f"not {self.names[side]}"
        steps = (-1, -0.5, 0.5, 1)
        shades = {f"  {step * FULL:+g}  ": step for step in steps}
        key = {f"decides for {against}  ": 0.0} | shades | {f"  for {self.names[side]}": 0.0}
        return painting.painted(list(key), list(key.values()), "legend")


def facts(reader: Reader, source: space.Source, knows: str, score: str, right: str) -> str:
    """One line on a model: its size, what it knows and, if it has one, its score.

    Args:
        score: its name in metrics.json.
        right: of what it is the share.
    """
    line = f"**{reader.model.num_parameters():,}** parameters · {knows}"
    run = source.metrics()
    share = run.get("metrics", {}).get(score)
    if isinstance(share, float):
        data = run.get("data", {}).get("name", "its data")
        line += f" · right on **{share:.1%}** of the {right} of {data}"
    return line


def text_box(label: str, examples: dict[str, str]) -> gr.Textbox:
    """Where a visitor writes; the first example is there at the beginning."""
    return space.bounded(
        gr.Textbox(
            label=label,
            value=next(iter(examples.values())),
            lines=3,
            max_lines=8,
            max_length=MAX_TEXT,
        )
    )


def to_click(examples: dict[str, str], text: gr.Textbox, name: str) -> None:
    """The examples, each under its name."""
    gr.Examples(
        [[example] for example in examples.values()],
        [text],
        example_labels=list(examples),
        api_visibility="private",
        elem_id=name,
    )


def painting_box(label: str) -> gr.HTML:
    """Where a painted text is shown."""
    return gr.HTML(label=label, show_label=True, container=True, padding=False, min_height=64)


def filling(filler: Filler) -> None:
    """The part of a page where blanks are filled in."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = text_box(f"Text with {BLANK}", BLANKS)
            with gr.Row():
                fill = gr.Button("Fill in", variant="primary", min_width=80)
                hide = gr.Button("Hide a word", min_width=80)
            to_click(BLANKS, text, "examples")
        with gr.Column(scale=3, min_width=300):
            filled = painting_box("Filled in")
            with gr.Row():
                guesses = [
                    gr.Label(
                        label=f"Blank {number}",
                        num_top_classes=TOP,
                        show_heading=False,
                        min_width=200,
                        elem_classes="guesses",
                    )
                    for number in range(1, MAX_BLANKS + 1)
                ]
    found = {"fn": filler.fill, "inputs": text, "outputs": [filled, *guesses]}
    found |= {"concurrency_id": "read"}
    gr.on([fill.click, text.submit], api_name="fill", **found)
    hidden = hide.click(filler.hide, text, text, api_name="hide", concurrency_id="read")
    hidden.success(api_visibility="private", **found)


def judging(judge: Judge) -> None:
    """The part of a page where a sentence is judged."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = text_box("Sentence", SENTENCES)
            decide = gr.Button("Judge", variant="primary")
            to_click(SENTENCES, text, "sentences")
        with gr.Column(scale=3, min_width=300):
            page = painting_box("What decides")
            with gr.Row():
                chances = gr.Label(
                    label="The classes", show_heading=False, min_width=200, elem_classes="guesses"
                )
                table = gr.Dataframe(
                    headers=["word", "decides"],
                    label="The words that decide most",
                    interactive=False,
                    min_width=200,
                    elem_classes="decisive",
                )
    gr.on(
        [decide.click, text.submit],
        judge.judge,
        text,
        [chances, page, table],
        api_name="judge",
        concurrency_id="read",
    )


def build(
    filler: Filler, source: space.Source, judge: Judge | None, judge_source: space.Source
) -> gr.Blocks:
    """The page; without a judge, its second part says why it is not there."""
    config, vocabulary = filler.model.config, len(filler.tokenizer)
    about = ABOUT.format(pieces=vocabulary)
    with space.page("BERT") as blocks:
        gr.Markdown(
            "# BERT\nA text, read from both sides at once by an encoder that was written by hand "
            "and trained from scratch."
        )
        gr.Markdown("## Fill in the blanks")
        knows = (
            f"**{config.num_hidden_layers}** layers · **{vocabulary:,}** word pieces · reads "
            f"**{filler.limit}** of them at once"
        )
        line = facts(filler, source, knows, "masked_accuracy", "blanks in the validation text")
        gr.Markdown(line, elem_classes="facts")
        filling(filler)
        gr.Markdown("## Sentiment, and the words that decide")
        if judge is None:
            gr.Markdown(
                f"This part needs a second model, one that judges sentences, and there is none "
                f"here: whoever runs this page names it with `{judge_source.variable}`."
            )
        else:
            knows = f"says {' or '.join(f'**{name}**' for name in judge.names)}"
            line = facts(judge, judge_source, knows, "accuracy", "validation sentences")
            gr.Markdown(line, elem_classes="facts")
            judging(judge)
            about += ABOUT_SENTIMENT
        with gr.Accordion("About", open=False):
            gr.Markdown(about)
    return blocks


if __name__ == "__main__":
    space.use_all_cores()
    blank_source = space.Source.from_environment("bert")
    loaded = Filler(*blank_source.load(AutoModelForMaskedLM, AutoTokenizer))
    second = space.Source.from_environment("bert_sst2", prefix="SENTIMENT_")
    judges = None
    if not second.is_absent:
        judges = Judge(*second.load(AutoModelForSequenceClassification, AutoTokenizer))
    space.launch(build(loaded, blank_source, judges, second), painting.CSS + CSS)
