"""A page on which a picture classifier names a picture, and shows where it looked.

The source of this file is `spaces/pictures.py`; `make spaces` copies it into the Spaces of all
picture classifiers, since each is uploaded as a folder by itself.
"""

import contextlib
import html
import io
import os
import sys
import threading
from pathlib import Path

import gradio as gr
import numpy as np
import pyarrow.parquet
import space
import torch
from huggingface_hub import HfFileSystem
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

MAX_PIXELS = 50_000_000  # a file of a few kB may claim to hold terabytes
# What Pillow reads by itself. It knows more, some of it by starting other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
TOP = 5
MIN_GRID = 7  # cells along a side: a coarser map says little about where
SHOWN = 320  # pixels along a side of what is shown
HEAT = 0.6  # how much of what is shown is heat; the rest is the picture
# Viridis in five steps, made to be told apart by the colour-blind, too: it brightens all the way.
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
HUB_EXAMPLES = "datasets/uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet"
SECONDS_FOR_EXAMPLES = 20
CSS = """
.block > .image-container {flex: 1; min-height: 0}
.picture .image-frame img {width: 100%; height: 100%; object-fit: contain}
.pixels img {image-rendering: pixelated}
.examples .grid-wrap {height: auto; min-height: 0; padding-top: 0}
.examples .grid-container {
    grid-template: none; grid-template-columns: repeat(5, minmax(0, 1fr)); grid-auto-rows: auto;
    gap: 6px; padding: 0;
}
.examples .thumbnail-item {display: flex; flex-direction: column; height: auto; aspect-ratio: auto}
.examples .thumbnail-item img {height: auto; aspect-ratio: 1}
.examples .caption-label {
    position: static; width: 100%; max-width: none; padding: 1px 0; border: none; border-radius: 0;
    font-size: min(11px, 2.5vw); text-align: center; opacity: 1 !important;
}
.icon-button-wrapper:not(:has(button)) {display: none}
.output-class {padding: 4px 0 8px !important; min-height: 0 !important}
.seen img {width: 100%; height: auto}
.seen:not(:has(img)), .chosen:not(:has(input)) {display: none !important}  /* no picture yet */
.legend {font-size: 14px; line-height: 1.5}
.legend i {display: block; height: 12px; border-radius: 3px; margin: 4px 0 2px}
.legend div {display: flex; justify-content: space-between}
"""
ABOUT = f"""
- The network knows **{{count}} things** and nothing else. Whatever it is shown, it says which of
  them it takes it for: a probability is its own belief, and it may be very sure and wrong.
- It sees **{{width}} x {{height}} pixels**. Of a picture that is not square, it gets the middle.
- **Where it looked** (Grad-CAM, Selvaraju et al. 2017): of the network's last grid that is at least
  {MIN_GRID} x {MIN_GRID}, each channel is weighted by how much it raises the score of the class
  that was chosen. Bright is where the sum is large. The scale is that of each map, from no evidence
  to the most that this picture has; a map says where, not why.
- Read are JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF; of pictures that move, the first frame; what is
  transparent is put on white.
"""
ABOUT_EXAMPLES = "- The examples are pictures of CIFAR-10's test data (Krizhevsky 2009).\n"


# --------------------------------------------------------------------------- a file to a picture


def read(path: str) -> tuple[Image.Image, list[str]]:
    """The middle square of a picture, upright, in RGB; and what the visitor should know about it.

    Raises:
        space.Problem: the file is empty, damaged, too large, or no picture that can be read.
    """
    if not Path(path).stat().st_size:
        raise space.Problem("This file is empty; try another one.")
    try:
        opened = Image.open(path, formats=FORMATS)  # reads no more than its size and kind
    except Image.DecompressionBombError:
        raise _too_large() from None
    except Exception:  # of a file that is no picture, Pillow's readers may raise anything
        raise space.Problem(
            "This is no picture that can be read here; save it as JPEG or PNG, and try again."
        ) from None
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large()
        try:
            return _decode(image)
        except Exception:  # the same of one that is damaged further on
            raise space.Problem(
                f"This {image.format} file is damaged, or of an uncommon kind; save it anew as "
                f"JPEG or PNG, and try again."
            ) from None


def _too_large() -> space.Problem:
    return space.Problem(
        f"This picture has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller."
    )


def _decode(image: Image.Image) -> tuple[Image.Image, list[str]]:
    image.load()
    if image.mode == "F":
        raise ValueError("nobody knows which number is white")
    notes = []
    # A photo of a telephone (MPO) may carry a small copy of itself; that is no second frame.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("The file holds several pictures; the network sees the first.")
    with contextlib.suppress(Exception):  # nonsense where the orientation should be: as it is
        image = ImageOps.exif_transpose(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to the lowest 8
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            notes.append("What is transparent in the picture is shown on white.")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), notes


# ---------------------------------------------------------------------- a picture to its evidence


def grad_cam(score: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Where the evidence for a class lies (Selvaraju et al. 2017), at least 0 everywhere.

    Args:
        score: (), the class's score before the softmax.
        grid: (1, channels, y, x), what a layer gave on the way to the score.

    Returns:
        (y, x): relu of the sum over k of weight_k * grid_k, where weight_k is the mean of
        d score / d grid_k.
    """
    (slopes,) = torch.autograd.grad(score, grid)
    weights = slopes.mean((2, 3), keepdim=True)  # (1, channels, 1, 1)
    return (weights * grid).sum(1)[0].relu().detach()


def heat_map(seen: Image.Image, evidence: torch.Tensor) -> Image.Image:
    """The evidence, (y, x), as colours over the picture; brightest where there is most."""
    evidence = evidence / evidence.max().clamp_min(torch.finfo().tiny)
    evidence = torch.nn.functional.interpolate(
        evidence[None, None], size=(seen.height, seen.width), mode="bicubic", align_corners=False
    )[0, 0].clamp(0, 1)
    steps, palette = np.linspace(0, 1, len(COLOURS)), np.array(COLOURS).T
    heat = np.stack([np.interp(evidence.numpy(), steps, channel) for channel in palette], -1)
    heat = Image.fromarray(heat.astype(np.uint8))
    return Image.blend(seen.convert("L").convert("RGB"), heat, HEAT)


def legend(name: str, found: bool) -> str:
    """What the colours mean, as HTML."""
    colours = ", ".join(f"rgb{colour}" for colour in COLOURS)
    name = html.escape(name)
    if not found:
        return f'<div class="legend">Nothing in this picture speaks for <b>{name}</b>.</div>'
    return (
        f'<div class="legend">Evidence for <b>{name}</b>'
        f'<i style="background: linear-gradient(to right, {colours})"></i>'
        f"<div><span>none</span><span>most</span></div></div>"
    )


class Classifier:
    """A picture classifier and its image processor."""

    def __init__(self, model, processor):
        # What is stored in bf16 to be small is faster in fp32 on most processors.
        self.model = model.float().eval()
        self.processor = processor
        self.names = [model.config.id2label[i] for i in range(model.config.num_labels)]

    def look(self, image: Image.Image):
        """The picture as the network sees it, (num_labels,) scores, and a grid with gradients."""
        pixels = self.processor(images=image, return_tensors="pt").pixel_values  # (1, 3, y, x)
        output = self.model(pixel_values=pixels, output_hidden_states=True)
        fine = [grid for grid in output.hidden_states if min(grid.shape[2:]) >= MIN_GRID]
        grid = (fine or output.hidden_states)[-1]
        mean, std = (
            torch.tensor(value)[:, None, None]
            for value in (self.processor.image_mean, self.processor.image_std)
        )
        colours = (255 * (pixels[0] * std + mean)).round().clamp(0, 255)  # as it was normalised
        seen = Image.fromarray(colours.permute(1, 2, 0).byte().numpy())  # (3, y, x) -> (y, x, 3)
        scale = max(1, SHOWN // max(seen.size))
        seen = seen.resize((seen.width * scale, seen.height * scale), Image.Resampling.NEAREST)
        return seen, output.logits[0], grid

    def classify(self, path: str | None):
        """Names a picture: the likeliest classes, what was seen, and the evidence for the first."""
        if path is None:
            return {}, gr.update(choices=[], value=None), None, None, ""
        image, notes = read(path)
        for note in notes:
            space.warn(note)
        seen, scores, grid = self.look(image)
        chances = scores.softmax(-1).detach()
        best = chances.topk(min(TOP, len(self.names)))
        top = {
            self.names[i]: p
            for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        }
        first = next(iter(top))
        found, shown = self._evidence(seen, scores, grid, first)
        return top, gr.update(choices=list(top), value=first), seen, shown, legend(first, found)

    def explain(self, path: str | None, name: str | None):
        """The evidence for one class."""
        if path is None:
            raise space.Problem("Choose a picture first.")
        if name not in self.names:
            raise space.Problem(f"The classes are: {', '.join(self.names)}.")
        found, shown = self._evidence(*self.look(read(path)[0]), name)
        return shown, legend(name, found)

    def _evidence(self, seen, scores, grid, name: str) -> tuple[bool, Image.Image]:
        evidence = grad_cam(scores[self.names.index(name)], grid)
        return bool(evidence.any()), heat_map(seen, evidence)


# ----------------------------------------------------------------------------------- the examples


def find_examples() -> list[tuple[Image.Image, str]]:
    """A picture of each class of CIFAR-10, and its name; none where they cannot be had in time.

    From `$GROUNDUP_DATA/cifar10/test.parquet`, else from the Hub.
    """
    found: list[tuple[Image.Image, str]] = []
    problem = [f"not within {SECONDS_FOR_EXAMPLES} seconds"]

    def search():
        try:
            found.extend(_first_of_each_class())
        except Exception as error:  # a page without examples is better than no page
            problem[0] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    thread = threading.Thread(target=search, daemon=True)  # a Hub that does not answer is left
    thread.start()
    thread.join(SECONDS_FOR_EXAMPLES)
    examples = list(found)
    if not examples:
        print(f"no example pictures of CIFAR-10 ({problem[0]})", file=sys.stderr)
    return examples


def _first_of_each_class() -> list[tuple[Image.Image, str]]:
    file = Path(os.environ.get("GROUNDUP_DATA") or ".") / "cifar10" / "test.parquet"
    source = file if file.is_file() else HfFileSystem().open(HUB_EXAMPLES)
    table, first = pyarrow.parquet.ParquetFile(source), {}
    column = next(name for name in ("img", "image") if name in table.schema_arrow.names)
    for batch in table.iter_batches(100, columns=[column, "label"]):
        for row in batch.to_pylist():
            first.setdefault(row["label"], row[column]["bytes"])
        if len(first) == len(CIFAR10):
            break
    return [
        (Image.open(io.BytesIO(first[label]), formats=FORMATS).convert("RGB"), CIFAR10[label])
        for label in sorted(first)
    ]


# --------------------------------------------------------------------------------------- the page


def facts(classifier: Classifier, source: space.Source) -> str:
    """One line on the model: its size and, if it has one, its score."""
    run, size = source.metrics(), classifier.processor.size
    line = (
        f"**{classifier.model.num_parameters():,}** parameters · sees **{size['width']} x "
        f"{size['height']}** pixels · knows **{len(classifier.names)}** classes"
    )
    score = run.get("metrics", {}).get("accuracy")
    if isinstance(score, float):
        name = run.get("data", {}).get("name", "its data")
        line += f" · right on **{score:.1%}** of pictures of {name} that it had not seen before"
    return line


def build(classifier: Classifier, source: space.Source, title: str, about: str) -> gr.Blocks:
    """The page."""
    examples = find_examples() if tuple(classifier.names) == CIFAR10 else []
    with space.page(title) as blocks:
        gr.Markdown(f"# {title}\n{about}")
        gr.Markdown(facts(classifier, source), elem_classes="facts")
        with gr.Row():
            with gr.Column(min_width=300):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    height=SHOWN,
                    buttons=[],
                    format="png",
                    alt_text="The picture that you gave",
                    elem_classes="picture",
                    placeholder="Drop a picture here, or click to choose one",
                )
                # As it was sent: Gradio would open it, and stumble over what is no picture.
                picture.preprocess = lambda payload: payload and payload.path
                gallery = gr.Gallery(
                    examples,
                    label="Examples: click one",
                    columns=5,
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    format="png",
                    visible=bool(examples),
                    elem_classes=["examples", "pixels"],
                )
            with gr.Column(min_width=300):
                top = gr.Label(label="The likeliest classes", num_top_classes=TOP)
                chosen = gr.Radio(
                    [],
                    label="Where is the evidence for",
                    interactive=True,
                    elem_classes="chosen",
                )
                with gr.Row():
                    slim = {"min_width": 130, "buttons": [], "format": "png"}
                    seen = gr.Image(
                        label="What it sees",
                        alt_text="The picture as the network sees it",
                        elem_classes=["seen", "pixels"],
                        **slim,
                    )
                    shown = gr.Image(
                        label="Where it looked",
                        alt_text="Where the evidence for the class lies",
                        elem_classes="seen",
                        **slim,
                    )
                key = gr.HTML(label="Key of the colours", show_label=False)
        with gr.Accordion("About", open=False):
            size = classifier.processor.size
            told = ABOUT.format(
                count=len(classifier.names), width=size["width"], height=size["height"]
            )
            gr.Markdown(told + (ABOUT_EXAMPLES if examples else ""))

        def example(event: gr.SelectData):
            return examples[event.index][0]

        found = [top, chosen, seen, shown, key]
        look = {"fn": classifier.classify, "inputs": picture, "outputs": found}
        look |= {"concurrency_id": "look"}
        given = picture.upload(api_name="classify", **look)
        taken = gallery.select(example, None, picture, api_visibility="private")
        taken = taken.then(api_visibility="private", **look)
        # What was said of the last picture would seem to be said of the next.
        blank = {"fn": lambda: (None, *classifier.classify(None)), "inputs": None}
        blank |= {"outputs": [picture, *found], "api_visibility": "private"}
        for forget in (picture.clear, given.failure, taken.failure):
            forget(**blank)
        # The page offers the likeliest classes; those who call the API may ask for any.
        asked = space.bounded(gr.Textbox(label="Class", max_length=100, visible="hidden"))
        explain = {"fn": classifier.explain, "outputs": [shown, key], "concurrency_id": "look"}
        chosen.input(
            inputs=[picture, chosen], api_name="choose", api_visibility="private", **explain
        )
        asked.submit(inputs=[picture, asked], api_name="explain", **explain)
    return blocks


def main(config: str, title: str, about: str) -> None:
    """Serves the page for the model that the environment names, else `pretrained/<config>`."""
    space.use_all_cores()
    source = space.Source.from_environment(config)
    loaded = source.load(AutoModelForImageClassification, AutoImageProcessor)
    space.launch(build(Classifier(*loaded), source, title, about), CSS)
