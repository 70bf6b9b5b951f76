"""A Space in which a recurrent network continues a text, and shows what it carries along.

    MODEL_ID=you/rnn python app.py    # MODEL_ID: a Hub name or a folder; in a clone, pretrained/rnn

The state of the network is a row of numbers. One of them, painted over a text, may turn out to
count something: the length of a line, whether a name is being said (Karpathy et al. 2015,
"Visualizing and understanding recurrent networks").
"""

import gradio as gr
import painting
import space
import torch
import writing
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_PAINTED = 2000  # characters
LEGEND = {"The unit says  ": 0.0} | {f"  {value:g}  ": value for value in (-1, -0.5, 0, 0.5, 1)}
EXAMPLES = {
    "Romeo speaks": "ROMEO:\n",
    "To be, or not": "HAMLET:\nTo be, or not to be, that is the question:\n",
    "The King enters": "Enter KING RICHARD, and soldiers.\n\nKING RICHARD:\nMy lords, ",
    "From nothing": "",
}
TO_READ = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish?

All:
Resolved. resolved.

First Citizen:
First, you know Caius Marcius is chief enemy to the people.
"""
ABOUT = """
It is a small model that has read little: no facts, no instructions, only the manner of what it
was trained on. All that it knows of what came before is in a state of fixed size.
{settings}- **Painted**: after each token, every unit of every layer has a value from -1 (blue) to
  1 (orange). Most say nothing to us; some follow the lines, the names, the words.
"""


class Reader:
    """The model of a `Writer`, looked into."""

    def __init__(self, writer: writing.Writer):
        self.writer = writer
        self.num_layers = writer.model.config.num_hidden_layers
        self.num_units = writer.model.config.hidden_size

    @torch.inference_mode()
    def paint(self, text: str, layer: int, unit: int) -> str:
        """The text, painted with what one unit (from 1) of one layer (from 1) says after it."""
        known = self.writer.pieces(text)
        if not known:
            return '<div class="painted">Nothing to read.</div>'
        # A text is read as in training: after the token between documents.
        ids = [self.writer.tokenizer.bos_token_id, *(token for token, _ in known)]
        ids = torch.tensor([ids], device=self.writer.model.device)
        outputs = self.writer.model(input_ids=ids, output_hidden_states=True)
        values = outputs.hidden_states[layer][0, 1:, unit - 1]  # the first of them is the embedding
        return painting.painted([piece for _, piece in known], values.tolist())


def units(reader: Reader, text: gr.Textbox) -> None:
    """The part of a page where a unit is painted.

    Args:
        reader: the model.
        text: the box with what was written, which may be painted.
    """
    gr.Markdown("## What a unit says")
    with gr.Row():
        with gr.Column(scale=2):
            read = gr.Textbox(
                label="To read",
                value=TO_READ,
                lines=8,
                max_lines=12,
                max_length=MAX_PAINTED,
            )
            slim = {"min_width": 175, "precision": 0, "buttons": []}
            with gr.Row():
                layer = gr.Slider(
                    1, reader.num_layers, reader.num_layers, step=1, label="Layer", **slim
                )
                unit = gr.Slider(1, reader.num_units, 1, step=1, label="Unit", **slim)
            with gr.Row():
                paint = gr.Button("Paint", variant="primary", min_width=80)
                following = gr.Button("Next unit", min_width=80)
                take = gr.Button("Take what was written", min_width=80)
        with gr.Column(scale=3):
            shown = gr.HTML(label="Painted")
            gr.HTML(painting.painted(list(LEGEND), list(LEGEND.values()), "legend"))
    inputs = [read, layer, unit]
    for component in inputs:
        space.bounded(component)
    shared = {"fn": reader.paint, "inputs": inputs, "outputs": shown, "concurrency_id": "paint"}
    gr.on([paint.click, unit.release, layer.release], api_name="paint", **shared)
    next_unit = following.click(None, unit, unit, js=f"unit => unit % {reader.num_units} + 1")
    next_unit.then(api_visibility="private", **shared)
    taken = take.click(None, text, read, js=f"text => text.slice(0, {MAX_PAINTED})")
    taken.then(api_visibility="private", **shared)


def build(writer: writing.Writer, source: space.Source) -> gr.Blocks:
    """The page."""
    config = writer.model.config
    with space.page("Character RNN") as blocks:
        gr.Markdown(
            "# Character RNN\nA recurrent network, written by hand and trained from scratch. Give "
            "it a beginning, and it goes on."
        )
        cells = {"rnn": "plain cells", "gru": "GRUs", "lstm": "LSTM cells"}[config.cell_type]
        memory = f"**{config.num_hidden_layers}** layers of **{config.hidden_size}** {cells}"
        gr.Markdown(writing.facts(writer, source, memory), elem_classes="facts")
        text = writing.controls(writer, EXAMPLES)
        units(Reader(writer), text)
        with gr.Accordion("About", open=False):
            gr.Markdown(ABOUT.format(settings=writing.SETTINGS))
    return blocks


if __name__ == "__main__":
    space.use_all_cores()
    model_source = space.Source.from_environment("rnn")
    loaded = model_source.load(AutoModelForCausalLM, AutoTokenizer)
    space.launch(build(writing.Writer(*loaded), model_source), painting.CSS)
