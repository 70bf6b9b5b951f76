"""What all Spaces share: the model that the environment names, bounded inputs, page and server.

The source of this file is `spaces/space.py`. A Space is uploaded as a folder by itself, so each one
holds a copy, made by `make spaces`; a test keeps the copies equal.
"""

import html
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch
from transformers.utils import cached_file

MAX_WAITING = 16  # visitors in the queue; the next one is told to come back later
MAX_FILE = "20mb"  # what a visitor may upload; every Gradio app has a place for it
FONT = ("ui-sans-serif", "system-ui", "sans-serif")  # the reader's own: nothing to download
THEME = gr.themes.Soft(
    primary_hue="teal", secondary_hue="teal", neutral_hue="stone", font=FONT, font_mono=FONT
).set(
    background_fill_primary="*neutral_100",  # `set` forgets Soft's own
    input_border_color="*neutral_200",
    input_border_width="1px",
    input_shadow="none",
    slider_color="*primary_700",
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_padding="0",
    block_title_text_color="*neutral_600",
    block_title_text_color_dark="*neutral_300",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
    button_primary_background_fill="*primary_700",  # dark enough for its white letters
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    body_text_color_subdued="*neutral_500",  # bounds of sliders, footer: to be read as well
)
CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
.facts {opacity: 0.9}
#examples .label {color: inherit}
.tab-like-container input {width: 60px !important}
footer .divider:last-of-type {display: none}
[data-testid="status-tracker"]:has(.error) {display: none !important}  /* the message says it */
/* Titles above what they name, as those of other blocks, not upon it. */
.block:has(> label.float) {display: flex; flex-direction: column}
.block > label[data-testid="block-label"] {
    position: static; align-self: start; margin: 0; padding: 10px 12px 6px;
    font-size: var(--text-md);
    background: none; border: none; box-shadow: none; color: var(--block-title-text-color);
}
.block > label[data-testid="block-label"] > span {display: none}
.table-container .label p {
    color: var(--block-title-text-color); font-size: var(--text-md);
    font-weight: var(--block-title-text-weight);
}
@media (max-width: 640px) {.gradio-container > main {padding: 12px !important}}
"""


class Problem(gr.Error):
    """Something that the visitor can put right, in one sentence.

    Gradio shows it as HTML, so it is escaped; and it is no fault of the program, so no traceback
    goes to the log.
    """

    def __init__(self, message: str):
        super().__init__(html.escape(message, quote=False), print_exception=False)


def warn(message: str) -> None:
    """Tells the visitor something, and goes on."""
    gr.Warning(html.escape(message, quote=False))


def bounded(component):
    """A `gr.Textbox`, `gr.Slider` or `gr.Number` that refuses, in one sentence, what it may not be.

    The bounds are the component's own: `max_length`, or `minimum` and `maximum`. The page keeps
    within them by itself; those who call the API may send anything.
    """
    check = _check_text if isinstance(component, gr.Textbox) else _check_number
    component.preprocess = lambda payload: check(component, payload)
    return component


def _check_text(component: gr.Textbox, payload) -> str:
    # What is half of a surrogate pair, as JSON may hold, is no character.
    text = str(payload or "").encode("utf-8", "replace").decode().replace("\r\n", "\n")
    if len(text) > component.max_length:
        raise Problem(
            f"{component.label} has {len(text)} characters; it may have at most "
            f"{component.max_length}."
        )
    return text


def _check_number(component: gr.Slider | gr.Number, payload) -> float | int:
    low, high, whole = component.minimum, component.maximum, component.precision == 0
    try:
        value = float(payload)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    # Written so that NaN, which compares as false with everything, is refused.
    if not low <= value <= high or (whole and value != int(value)):
        shown = "empty" if payload is None else str(payload)[:40]
        kind = "whole number" if whole else "number"
        raise Problem(f"{component.label} is {shown}; it must be a {kind} from {low} to {high}.")
    return int(value) if whole else value


@dataclass
class Source:
    """Where a Space's model comes from.

    Args:
        name: a Hub name or a folder.
        revision: a branch, tag or commit of the Hub.
        variable: of the environment, which says so.
    """

    name: str
    revision: str | None = None
    variable: str = "MODEL_ID"

    @classmethod
    def from_environment(cls, config: str, prefix: str = "") -> "Source":
        """What MODEL_ID and MODEL_REVISION say; else `pretrained/<config>` of the clone around.

        The visitor has no say in it, because the model's own code is run.

        Args:
            config: of the run that made the model.
            prefix: of both variables' names, for a Space's second model.
        """
        clone = Path(__file__).resolve().parent.parent.parent
        variable = f"{prefix}MODEL_ID"
        name = os.environ.get(variable) or str(clone / "pretrained" / config)
        return cls(name, os.environ.get(f"{prefix}MODEL_REVISION") or None, variable)

    @property
    def is_absent(self) -> bool:
        """Whether the environment names no model, and no clone around has one."""
        return not (os.environ.get(self.variable) or Path(self.name).is_dir())

    def load(self, *auto_classes):
        """One object of each class, as in `model, tokenizer = load(AutoModel, AutoTokenizer)`.

        Where that fails, the program ends with one line: it is the operator who can help.
        """
        try:
            return [
                auto_class.from_pretrained(
                    self.name, revision=self.revision, trust_remote_code=True
                )
                for auto_class in auto_classes
            ]
        except Exception as error:  # anything, since the model's own code may raise anything
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if Path(self.name).is_absolute() and not Path(self.name).is_dir():
                why = "there is no such folder"
            at = f" at revision {self.revision}" if self.revision else ""
            print(
                f"cannot load the model {self.name}{at} ({why}); set {self.variable} to the Hub "
                f"name or the folder of one",
                file=sys.stderr,
            )
            sys.exit(2)

    def metrics(self) -> dict:
        """The model's metrics.json; empty where it has none."""
        try:
            path = cached_file(
                self.name,
                "metrics.json",
                revision=self.revision,
                _raise_exceptions_for_missing_entries=False,
            )
            return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):
            return {}


def use_all_cores() -> None:
    """As many threads as this process has cores, unless OMP_NUM_THREADS says otherwise.

    torch counts the cores of the whole machine; in a container that may use two of them, the
    threads would be in each other's way.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    limit = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": two cores; "max 100000": no limit
    if limit.exists():
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    torch.set_num_threads(max(1, cores))


def page(title: str) -> gr.Blocks:
    """An empty page, to be filled by `with page(...) as blocks:`."""
    return gr.Blocks(title=title, analytics_enabled=False)


def launch(blocks: gr.Blocks, css: str = "") -> None:
    """Serves the page to this machine only, or as GRADIO_SERVER_NAME says; one visitor at a time.

    GRADIO_SERVER_PORT names a port.

    Args:
        css: what this page needs beyond what all have.
    """
    # Not api_open: requests by another way would go past the queue.
    blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    blocks.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        theme=THEME,
        css=CSS + css,
        max_file_size=MAX_FILE,
        footer_links=["api", "gradio"],
        run_history=False,  # what a visitor writes is kept nowhere
        ssr_mode=False,
    )
