"""A Space in which one network reads a sentence, and another writes its translation.

    MODEL_ID=you/seq2seq python app.py   # MODEL_ID: a Hub name or a folder; in a clone,
                                         # pretrained/seq2seq

With attention, each word that is written has looked at all that were read: the map shows where
(Bahdanau et al. 2014, "Neural machine translation by jointly learning to align and translate").
"""

import html
import math
import re
from dataclasses import dataclass
from itertools import pairwise

import gradio as gr
import space
import torch
import writing
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

MAX_TEXT = 300  # characters
MAX_READ = 60  # tokens
MAX_WRITTEN = 200  # tokens
MAX_BEAMS = 8
SAID_FROM = 0.1  # a cell with less of a look has no figure in it
DARK_FROM = 0.7  # a cell with more is so dark that its figure is light
END = "(end)"
# A word, with the hyphens and apostrophes in it; or signs.
WORD = re.compile("\\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}-]\\w+)*|[^\\w\\s]+")
LANGUAGES = {"de": "German", "en": "English", "fr": "French"}
# What is read and written, and what to click, by how the name begins of the data that the model has
# learnt from. Languages are named at its end: multi30k-de-en.
LABELS = {
    "pig-latin": ["English", "Pig Latin"],
    "number-words": ["Digits", "Words"],
    "cmudict": ["Spelling", "Phonemes"],
}
EXAMPLES = {
    "multi30k-de": [
        "Ein Hund rennt über eine grüne Wiese.",
        "Zwei Kinder bauen am Strand eine Burg aus Sand.",
        "Eine Frau in einem roten Kleid liest auf einer Bank.",
        "Ein alter Mann repariert vor seinem Haus ein Fahrrad.",
    ],
    "multi30k-en": [
        "A dog is running across a green meadow.",
        "Two children build a castle of sand on the beach.",
        "A woman in a red dress is reading on a bench.",
        "An old man repairs a bicycle in front of his house.",
    ],
    "multi30k-fr": [
        "Un chien court dans un pré vert.",
        "Deux enfants construisent un château de sable sur la plage.",
        "Une femme en robe rouge lit un livre sur un banc.",
        "Un vieil homme répare un vélo devant sa maison.",
    ],
    "pig-latin": ["The quick brown fox.", "Where are you, my friend?", "Strange things happen."],
    "number-words": ["42", "1066", "407316", "900001"],
    "cmudict": ["attention", "knowledge", "rhythm", "thoroughly"],
}
SCORES = {
    "bleu": "BLEU **{:.1f}**",
    "exact_match": "**{:.1%}** without a mistake",
    "phoneme_error_rate": "phoneme error rate **{:.1%}**",
}
NO_ATTENTION = (
    "There is nothing to see: this model has no attention. All that it knows of what it has read "
    "is the one state in which it begins to write."
)
NOTE = (
    "Each row is a piece of what was written: how many percent of its attention went to each piece "
    "of what was read."
)
ABOUT = """
It is a small model, and knows nothing but what it was trained on. What it does not know it makes
up.
- **Where it looked**: before it writes a token, the model deals out its attention among the tokens
  that it has read. A word may be several tokens: a row is then their mean, and a column their
  sum, so that each row adds up to 100%. (Some look twice, before and after their recurrent layers:
  this is the second look.)
- **Beams**: so many beginnings are kept in view, each step the likeliest ones; with 1, always the
  likeliest next token is taken.
- **Score**: the logarithm of a text's probability, divided by its number of tokens. 0 would be
  certainty; at -0.69, a token had a chance of one half.
"""
CSS = """
.map {--ink: 15, 118, 110; --deep: white; padding-bottom: 6px}
.map {overflow-x: auto; contain: inline-size}  /* a wide one scrolls, and the page does not */
.dark .map {--ink: 45, 212, 191; --deep: black}
.map table {border: none; border-collapse: separate; border-spacing: 2px; margin: 0; padding: 0}
.map tr, .map th, .map td {border: none; padding: 0; font-size: 13px; font-weight: 400}
.map thead th {vertical-align: bottom; text-align: center}
.map thead span {
    writing-mode: vertical-rl; transform: rotate(180deg); max-height: 130px; display: inline-block;
    overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding-top: 4px
}
.map thead td, .map tbody th {
    position: sticky; left: 0; z-index: 1; max-width: 120px; padding-right: 6px; text-align: right;
    overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
    background: var(--body-background-fill)
}
.map thead td {vertical-align: bottom; color: var(--body-text-color-subdued)}
.map tbody td {
    min-width: 28px; height: 28px; border-radius: 3px; text-align: center; font-size: 11px;
    background: rgba(var(--ink), calc(0.04 + 0.96 * var(--look)))
}
.map td.deep {color: var(--deep)}
.map tbody td:hover {outline: 2px solid rgb(var(--ink))}
.kept {contain: inline-size}  /* it would be as wide as its longest text, or wider than the page */
"""


@dataclass
class Written:
    """A text that the search has kept.

    Args:
        tokens: with the end, if it came to one.
        score: mean log probability of its tokens, in nats.
        attention: of the last layer, (heads, target, source), each row of which adds up to 1; None
            without.
    """

    tokens: list[int]
    score: float
    attention: torch.Tensor | None


class Translator:
    """The model of a `Writer`, which reads one text and writes another."""

    def __init__(self, writer: writing.Writer):
        self.writer = writer
        self.model = writer.model
        self.end = writer.tokenizer.eos_token_id
        # One that spells in small letters means something else by capitals: phonemes.
        known = writer.tokenizer.get_vocab()
        self.small_letters = "a" in known and "A" not in known
        # An end follows what is read, and a beginning is before what is written.
        room = math.inf if writer.context is None else writer.context - 1
        self.max_read, self.max_written = min(MAX_READ, room), min(MAX_WRITTEN, room)
        self.model.set_attn_implementation("eager")  # the others do not tell where they look

    def read(self, text: str) -> list[tuple[int, str]]:
        """The tokens of a text, each with what it stands for; warns of what is left out.

        Raises:
            space.Problem: there are none.
        """
        text = " ".join(text.split())
        known = self.writer.pieces(text.lower() if self.small_letters else text)
        if not known:
            raise space.Problem(
                "There is nothing to read: write something first, in letters that it knows."
            )
        if len(known) > self.max_read:
            space.warn(
                f"The model reads only the first {self.max_read} of the text's {len(known)} tokens."
            )
        return known[: self.max_read]

    def search(self, source: list[int], beams: int) -> list[Written]:
        """The texts that beam search ends with, the best one first."""
        ids = torch.tensor([source], device=self.model.device)
        # A text may become much longer: a number, spelt out letter by letter.
        length = min(self.max_written, 20 + 10 * len(source))
        found = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=length,
            do_sample=False,
        )  # (beams, 1 + target): the first token is the one to begin with
        # All again at once: `generate` does not say which beam had looked where.
        outputs = self.model(
            input_ids=ids.repeat(beams, 1),
            decoder_input_ids=found[:, :-1],
            output_attentions=True,
            use_cache=False,
        )
        chances = outputs.logits.float().log_softmax(-1).gather(2, found[:, 1:, None])[..., 0]
        layers = [layer for layer in outputs.cross_attentions or () if layer is not None]
        kept = []
        for i, tokens in enumerate(found[:, 1:].tolist()):
            # What follows the end is padding.
            tokens = tokens[: tokens.index(self.end) + 1] if self.end in tokens else tokens
            attention = layers[-1][i, :, : len(tokens)] if layers else None
            kept.append(Written(tokens, chances[i, : len(tokens)].mean().item(), attention))
        if self.end not in kept[0].tokens:
            space.warn(f"The model came to no end; it was stopped after {length} tokens.")
        return kept

    def pieces(self, tokens: list[int]) -> list[str]:
        """What each token of a text stands for; several may make one character."""
        texts = [self.writer.decode(tokens[:i]) for i in range(len(tokens) + 1)]
        # A character of which a part is there is left out, until it is whole.
        ends = [len(text.rstrip("\N{REPLACEMENT CHARACTER}")) for text in texts]
        return [texts[-1][start:end] for start, end in pairwise(ends)]

    @torch.inference_mode()
    def translate(self, text: str, beams: int, by_token: bool) -> tuple[str, str, list[list]]:
        """The translation, where the model looked, and what the search has kept: text and score."""
        read = self.read(text)
        kept = self.search([*(token for token, _ in read), self.end], beams)
        shown = self.where(kept[0], [piece for _, piece in read], by_token)
        found = [[self.text(written), round(written.score, 3)] for written in kept]
        return found[0][0], shown, found

    def text(self, written: Written) -> str:
        """What was written, without the end."""
        return self.writer.decode([token for token in written.tokens if token != self.end]).strip()

    def where(self, written: Written, read: list[str], by_token: bool) -> str:
        """The map of where the model looked, as HTML.

        Args:
            read: the pieces of what was read, which an end followed.
            by_token: not by word. What is a single word is shown by token anyway.
        """
        if written.attention is None:
            return f"<p>{NO_ATTENTION}</p>"
        tokens = [token for token in written.tokens if token != self.end]
        pieces = self.pieces(tokens)
        rows = tokens_of(pieces) if by_token else words_of(pieces)
        columns = tokens_of(read) if by_token else words_of(read)
        if len(tokens) < len(written.tokens):
            rows.append((END, [len(tokens)]))
        columns.append((END, [len(read)]))
        note = NOTE
        if len(written.attention) > 1:
            note += f" This is the mean of the {len(written.attention)} heads of the last layer."
        table = heat_map(merged(written.attention.mean(0), rows, columns), rows, columns)
        return f"{table}<p>{note}</p>"


# ------------------------------------------------------------------------------------------ the map

Names = list[tuple[str, list[int]]]  # each: what it is called, and which tokens it has


def tokens_of(pieces: list[str]) -> Names:
    """Each token by itself; what is no whole character is called …, and spaces are shown."""
    return [(re.sub(r"\s", "␣", piece) or "…", [i]) for i, piece in enumerate(pieces)]


def words_of(pieces: list[str]) -> Names:
    """The words of a text in pieces; a sign is a word, and a space belongs to the next one."""
    ends = [match.end() for match in WORD.finditer("".join(pieces))]
    words: dict[int, list[int]] = {}
    start = 0
    for i, piece in enumerate(pieces):
        before = sum(end <= start for end in ends)  # the words that are over
        words.setdefault(min(before, len(ends) - 1), []).append(i)
        start += len(piece)
    if len(words) < 2:
        return tokens_of(pieces)
    return [("".join(pieces[i] for i in tokens).strip(), tokens) for tokens in words.values()]


def merged(attention: torch.Tensor, rows: Names, columns: Names) -> list[list[float]]:
    """(target, source) -> (rows, columns): the sum of what is read, the mean of what is written."""
    sums = torch.stack([attention[:, tokens].sum(1) for _, tokens in columns], 1)
    return torch.stack([sums[tokens].mean(0) for _, tokens in rows]).tolist()


def heat_map(looks: list[list[float]], rows: Names, columns: Names) -> str:
    """A table, each cell of which is as dark as the look was long, as HTML."""
    written, read = ([html.escape(name) for name, _ in names] for names in (rows, columns))
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in read)
    body = ""
    for row, name in zip(looks, written, strict=True):
        body += f'<tr><th scope="row">{name}</th>'
        for look, column in zip(row, read, strict=True):
            kind = ' class="deep"' if look > DARK_FROM else ""
            body += (
                f'<td{kind} style="--look: {look:.3f}" title="{name} looked at {column}: '
                f'{look:.0%}">{f"{100 * look:.0f}" if look >= SAID_FROM else ""}</td>'
            )
        body += "</tr>"
    corner = "<td>read →<br>written ↓</td>"
    return (
        f'<div class="map" tabindex="0"><table><thead><tr>{corner}{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# ----------------------------------------------------------------------------------------- the page


def facts(translator: Translator, source: space.Source) -> str:
    """One line on the model: its size and, if it has them, its attention and its score."""
    run = source.metrics()
    line = f"**{translator.model.num_parameters():,}** parameters"
    attention = getattr(translator.model.config, "attention_type", None)
    if attention:
        line += f" · attention: **{attention}**"
    metrics, name = run.get("metrics", {}), run.get("data", {}).get("name", "its data")
    for metric, said in SCORES.items():
        if isinstance(metrics.get(metric), float):
            line += f" · {said.format(metrics[metric])} on {name}"
    return line


def of_data(name: str, table: dict[str, list[str]]) -> list[str]:
    """What a table has for a data set; nothing for others."""
    return next((found for prefix, found in table.items() if name.startswith(prefix)), [])


def build(translator: Translator, source: space.Source) -> gr.Blocks:
    """The page."""
    data = str(source.metrics().get("data", {}).get("name", ""))
    labels = of_data(data, LABELS) or [LANGUAGES[x] for x in data.split("-") if x in LANGUAGES]
    read, written = labels if len(labels) == 2 else ["Read", "Written"]
    examples = of_data(data, EXAMPLES)
    with space.page("Translator") as blocks:
        gr.Markdown(
            "# Translator\nOne network reads a text, another writes what becomes of it: both built "
            "by hand, and trained from scratch. See which word looked where."
        )
        gr.Markdown(facts(translator, source), elem_classes="facts")
        with gr.Row():
            with gr.Column(min_width=300):
                text = gr.Textbox(
                    label=read,
                    placeholder="What the model is to read",
                    lines=2,
                    max_lines=6,
                    max_length=MAX_TEXT,
                    value=next(iter(examples), None),
                )
                translate = gr.Button("Translate", variant="primary")
                beams = gr.Slider(1, MAX_BEAMS, 4, step=1, precision=0, label="Beams", buttons=[])
                if examples:
                    clicked = gr.Examples(
                        [[example] for example in examples],
                        [text],
                        api_visibility="private",
                        elem_id="examples",
                    )
            with gr.Column(min_width=300):
                translation = gr.Textbox(label=written, lines=2, max_lines=8, buttons=["copy"])
                kept = gr.Dataframe(
                    headers=["text", "score"],
                    label="Alternatives",
                    interactive=False,
                    wrap=True,
                    column_widths=["75%", "25%"],
                    buttons=[],
                    elem_classes="kept",
                )
        gr.Markdown("## Where it looked")
        by_token = gr.Checkbox(label="Show tokens, the pieces of words", container=False)
        shown = gr.HTML(label="Where it looked", padding=False)
        with gr.Accordion("About", open=False):
            gr.Markdown(ABOUT)
        inputs = [text, beams, by_token]
        for component in (text, beams):
            space.bounded(component)
        shared = {"fn": translator.translate, "inputs": inputs, "concurrency_id": "translate"}
        shared["outputs"] = [translation, shown, kept]
        gr.on([translate.click, text.submit], api_name="translate", **shared)
        gr.on([beams.release, by_token.input], api_visibility="private", **shared)
        if examples:
            clicked.load_input_event.then(api_visibility="private", **shared)
    return blocks


if __name__ == "__main__":
    space.use_all_cores()
    model_source = space.Source.from_environment("seq2seq")
    loaded = model_source.load(AutoModelForSeq2SeqLM, AutoTokenizer)
    space.launch(build(Translator(writing.Writer(*loaded)), model_source), CSS)
