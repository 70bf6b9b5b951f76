"""What the Spaces of language models share: a text is continued, one token after the other.

The source of this file is `spaces/writing.py`; `make spaces` copies it into each of them.

A model with positions reads at most its context: so many tokens back. When it is full, its second
half is read again as a new beginning, and the text goes on from there for as long as one likes. A
recurrent model carries its state on.
"""

import time
from collections.abc import Iterator

import gradio as gr
import space
import torch

MAX_PROMPT = 500  # characters
MAX_LENGTH = 1000  # tokens written in one go
MAX_SEED = 2**31 - 1
SECONDS_PER_UPDATE = 0.05  # of the page; also how soon Stop is heard
GREEDY_BELOW = 0.01  # dividing by a temperature smaller than this gives infinities
SETTINGS = """
- **Temperature**: low is careful and repeats itself, high is adventurous and stumbles; at 0 the
  likeliest token is always taken.
- **Top k**, **top p**: only the k likeliest tokens are in the draw (0: all), and of these only
  the likeliest that together have probability p.
- **Length**: so many tokens are written. A token is a character, or with some models a piece of a
  word.
- **Seed**: the same seed and settings give the same text.
"""


def choose(logits, temperature: float, top_k: int, top_p: float, generator) -> int:
    """Draws the next token from its scores, (vocab_size,); `top_k` 0 and `top_p` 1 keep all."""
    if temperature < GREEDY_BELOW:
        return int(logits.argmax())
    logits = logits.float() / temperature
    if 0 < top_k < len(logits):
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    probabilities, tokens = logits.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities  # of all that are likelier
    probabilities[before > top_p] = 0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


class Writer:
    """A language model and its tokenizer."""

    def __init__(self, model, tokenizer):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # What is stored in bf16 to be small is faster in fp32 on most processors.
        self.model = model.float().to(device).eval()
        self.tokenizer = tokenizer
        # How many tokens back the model sees; None for one that carries a state without end.
        self.context = getattr(model.config, "max_position_embeddings", None)

    def pieces(self, text: str) -> list[tuple[int, str]]:
        """The tokens that the tokenizer knows, each with what it stands for; warns of others."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        known, unknown, done = [], set(), 0
        for token, (start, end) in zip(encoding.input_ids, encoding.offset_mapping, strict=True):
            if token == self.tokenizer.unk_token_id:
                unknown.add(text[start:end])
            else:
                # Of a character of several tokens, each claims the whole: the first one gets it.
                known.append((token, text[max(start, done) : end]))
                done = end
        if unknown:
            listed = [x if x.isprintable() else repr(x)[1:-1] for x in sorted(unknown)[:20]]
            space.warn(f"Left out, because the model has never seen them: {' '.join(listed)}")
        return known

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens; warns where there are more than the model can read."""
        known = [token for token, _ in self.pieces(prompt)]
        if self._is_full(len(known)):
            space.warn(
                f"The model reads only the last {self.kept} of the prompt's {len(known)} tokens."
            )
        return known

    def _is_full(self, num_tokens: int) -> bool:
        return self.context is not None and num_tokens > self.context

    @property
    def kept(self) -> int:
        """How many tokens are read again when the context is full."""
        return max(1, self.context // 2)

    @torch.inference_mode()
    def tokens(self, text: list[int], **sampling) -> Iterator[int]:
        """Tokens that continue the text, without end."""
        text, cache, num_read, new = list(text), None, 0, list(text)
        while True:
            if self._is_full(num_read + len(new)):
                cache, num_read, new = None, 0, text[-self.kept :]
            ids = torch.tensor([new], device=self.model.device)
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, num_read = output.past_key_values, num_read + len(new)
            new = [choose(output.logits[0, -1].cpu(), **sampling)]
            text += new
            yield new[0]

    def write(self, prompt, temperature, top_k, top_p, length, seed) -> Iterator[str]:
        """The prompt and its continuation, as it grows."""
        generator = torch.Generator().manual_seed(seed)
        written = self.encode(prompt)
        # A text that starts from nothing starts as in training: after the token between documents.
        beginning = written or [self.tokenizer.bos_token_id]
        tokens = self.tokens(
            beginning, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        updated = 0.0
        for _, token in zip(range(length), tokens, strict=False):
            if token == self.tokenizer.eos_token_id:
                break
            written.append(token)
            if time.monotonic() - updated > SECONDS_PER_UPDATE:
                # A token may be a part of a character, whose other bytes are still to come.
                yield self.decode(written).rstrip("\N{REPLACEMENT CHARACTER}")
                updated = time.monotonic()
        yield self.decode(written)

    def decode(self, tokens: list[int]) -> str:
        """Tokens to text."""
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def facts(writer: Writer, source: space.Source, memory: str) -> str:
    """One line on the model: its size, what it sees of the past and, if it has one, its score."""
    run = source.metrics()
    line = f"**{writer.model.num_parameters():,}** parameters · {memory}"
    score = run.get("metrics", {}).get("nats_per_character")
    if isinstance(score, float):
        data = run.get("data", {}).get("name", "its data")
        line += f" · validation loss **{score:.3f}** nats per character on {data}"
    return line


def controls(writer: Writer, examples: dict[str, str]) -> gr.Textbox:
    """The part of a page where the model writes.

    Args:
        writer: the model.
        examples: name -> prompt; the first is there at the beginning.

    Returns:
        The box with what it has written.
    """
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="A beginning, or nothing",
                lines=3,
                max_lines=8,
                max_length=MAX_PROMPT,
                value=next(iter(examples.values())),
            )
            with gr.Row():
                write = gr.Button("Write", variant="primary", min_width=80)
                another = gr.Button("Another", min_width=80)
                stop = gr.Button("Stop", variant="stop", min_width=80)
            gr.Examples(
                [[text] for text in examples.values()],
                [prompt],
                example_labels=list(examples),
                api_visibility="private",
                elem_id="examples",
            )
        with gr.Column(scale=3):
            text = gr.Textbox(
                label="Text",
                placeholder="What the model writes",
                lines=16,
                max_lines=100,  # it grows with the text: two scroll bars are one too many
                buttons=["copy"],
            )
    with gr.Row():
        # No narrower, so that each has a line to itself on a phone.
        slim = {"min_width": 175, "buttons": []}
        temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", **slim)
        top_k = gr.Slider(0, 200, 50, step=1, precision=0, label="Top k", **slim)
        top_p = gr.Slider(0, 1, 0.95, step=0.01, label="Top p", **slim)
        length = gr.Slider(1, MAX_LENGTH, 400, step=1, precision=0, label="Length", **slim)
        seed = gr.Number(1, minimum=0, maximum=MAX_SEED, precision=0, label="Seed", **slim)

    inputs = [prompt, temperature, top_k, top_p, length, seed]
    for component in inputs:
        space.bounded(component)
    shared = {"fn": writer.write, "inputs": inputs, "outputs": text, "concurrency_id": "write"}
    writing = gr.on([write.click, prompt.submit], api_name="write", **shared)
    next_seed = another.click(None, seed, seed, js=f"seed => (seed + 1) % {MAX_SEED}")
    again = next_seed.then(api_visibility="private", **shared)
    stop.click(None, cancels=[writing, again])
    return text
