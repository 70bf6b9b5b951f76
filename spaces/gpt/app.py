"""A Space in which a GPT continues a text, one token after the other.

    MODEL_ID=you/gpt python app.py    # MODEL_ID: a Hub name or a folder; in a clone, pretrained/gpt

The model reads at most its context: so many tokens back. When it is full, its second half is read
again as a new beginning, and the text goes on from there for as long as one likes.
"""

import gradio as gr
import space
import writing
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = {
    "Romeo speaks": "ROMEO:\n",
    "To be, or not": "HAMLET:\nTo be, or not to be, that is the question:\n",
    "The King enters": "Enter KING RICHARD, and soldiers.\n\nKING RICHARD:\nMy lords, ",
    "From nothing": "",
}
ABOUT = """
It is a small model that has read little: no facts, no instructions, only the manner of what it
was trained on.
{settings}- The model looks back at most {context} tokens. When so many are read, it forgets the
  older half and goes on.
"""


def build(writer: writing.Writer, source: space.Source) -> gr.Blocks:
    """The page."""
    with space.page("Tiny GPT") as blocks:
        gr.Markdown(
            "# Tiny GPT\nA small GPT, written by hand and trained from scratch. Give it a "
            "beginning, and it goes on."
        )
        memory = f"looks back **{writer.context}** tokens"
        gr.Markdown(writing.facts(writer, source, memory), elem_classes="facts")
        writing.controls(writer, EXAMPLES)
        with gr.Accordion("About", open=False):
            gr.Markdown(ABOUT.format(settings=writing.SETTINGS, context=writer.context))
    return blocks


if __name__ == "__main__":
    space.use_all_cores()
    model_source = space.Source.from_environment("gpt")
    loaded = model_source.load(AutoModelForCausalLM, AutoTokenizer)
    space.launch(build(writing.Writer(*loaded), model_source))
