"""What a run leaves behind: the model with its code, figures, a card, and last metrics.json."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from groundup.train import machine
from groundup.train.recipe import RunArguments, put_in_place, write_whole

CARD_TEMPLATE = Path(__file__).with_name("model_card.md")
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate")


def commit() -> str | None:
    """The commit of the code that runs, marked where the code has changed since; None outside git.

    What a run writes (results, models) is no code.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    code = ["models", "train", "data_scripts", "configs", "groundup"]
    try:
        # A checkout of somebody else's, with this package installed in it, is not ours.
        known = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.check_output(known, stderr=subprocess.DEVNULL)
        head = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL)
        changes = subprocess.check_output(
            [*git, "status", "--porcelain", "--", *(f":/{folder}" for folder in code)]
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.decode().strip()[:12] + ("-dirty" if changes.strip() else "")


COMMIT = commit()  # when the run starts: the code may change before it ends


def command() -> str:
    """The command that made this run, as it is published: no token, no folders of this machine."""
    script = Path(sys.argv[0])
    launched = "accelerate launch -q" if "ACCELERATE_MIXED_PRECISION" in os.environ else "python"
    shown, secret = [f"{script.parent.name}/{script.name}"], False
    for argument in sys.argv[1:]:
        flag, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            flag, equals, value = "", "", argument
        if secret or flag.replace("-", "_") == "__hub_token":
            secret = not secret and not equals  # the token itself may be the next argument
            continue
        name = Path(value).name if Path(value).is_absolute() else value
        shown.append(f"{flag}{equals}{name}")
    return " ".join(f"{launched} {shlex.join(shown)}".split())


def provenance() -> dict:
    """Where a figure comes from: machine, versions, commit, command."""
    return {
        "hardware": machine.describe(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "commit": COMMIT,
        "command": command(),
    }


def run_metrics(system, config, args: RunArguments, metrics: dict, data: dict, seconds: float):
    """The content of metrics.json, as a dictionary (DESIGN: Scores)."""
    return {
        "system": system,
        "config": config,
        "metrics": metrics,
        "data": data,
        "seed": args.seed,
        "processes": args.world_size,
        "precision": args.precision,
        "train_seconds": round(seconds, 1),
        "peak_memory_bytes": machine.peak_memory_bytes(),
        **provenance(),
    }


def plot_loss(
    history: list[dict],
    path: Path,
    lines: dict[str, str],
    xlabel: str = "updates",
    marks: dict[int, str] | None = None,
) -> None:
    """Losses over the updates.

    Args:
        lines: key in Trainer's log -> what it is called.
        xlabel: what the log's steps are.
        marks: step -> what happens there; a line across.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    drawn = False
    for key, label in lines.items():
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            marker = "o-" if key.startswith("eval_") else "-"
            axes.plot(*zip(*points, strict=True), marker, label=label, markersize=4)
            drawn = True
    for step, label in (marks or {}).items():
        axes.axvline(step, color="gray", linestyle=":", label=label)
    axes.set(xlabel=xlabel, ylabel="loss")
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(frameon=False)
    else:
        axes.set_title("no losses were logged: fewer updates than --logging_steps")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_model(model, processor, output_dir: Path) -> None:
    """The model, its code and its tokenizer or processor: each file whole or not at all."""
    staging = output_dir / ".saving"
    try:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        put_in_place(staging, output_dir / ".saved")
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # on a full disk, what was begun
    saved = output_dir / ".saved"
    for file in saved.glob("*.safetensors"):  # which safetensors lets its owner alone read
        shutil.copymode(next(saved.glob("*.json")), file)
    for file in saved.iterdir():
        file.replace(output_dir / file.name)
    saved.rmdir()


def write_card(
    output_dir: Path,
    run: dict,
    *,
    title: str,
    pipeline_tag: str,
    task_name: str,
    scores: dict[str, str],
    sections: dict[str, str],
    usage: str,
    tags: list[str],
    language: str | list[str] | None = None,
    license: str | None = None,
    split: str = "validation",
    base_model: str | None = None,
    datasets: list[str] | None = None,
    scored_on: dict[str, dict[str, str]] | None = None,
) -> None:
    """The model card: README.md with the front matter that the Hub reads.

    Args:
        run: what `run_metrics` gave.
        scores: name in `run["metrics"]` -> what it is called; the first is the score.
        sections: heading -> Markdown, in this order; one without a heading stands first.
        usage: Python that loads and uses the model.
        language, license: of the model; left out where the data does not tell.
        split: of the data, which was scored.
        base_model, datasets: names on the Hub, where there are any.
        scored_on: name of a score -> what `EvalResult` is to have other than the run's own data,
            split and the score's name, such as {"dataset_name": "WordSim-353"}.
    """
    results = [
        EvalResult(
            **{
                "task_type": pipeline_tag,
                "task_name": task_name,
                "dataset_type": (datasets or [run["data"]["name"]])[0],
                "dataset_name": run["data"]["name"],
                "dataset_split": split,
                "metric_type": name,
                "metric_name": label,
                "metric_value": round(run["metrics"][name], 4),
                **(scored_on or {}).get(name, {}),
            }
        )
        for name, label in scores.items()
    ]
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        base_model=base_model,
        datasets=datasets,
        tags=["groundup", *tags],
        model_name=title,
        eval_results=results,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(CARD_TEMPLATE),
        title=title,
        run=run,
        scores=scores,
        sections=sections,
        usage=usage,
        date=date.today().isoformat(),
    )
    write_whole(output_dir / "README.md", str(card))


def finish(output_dir: Path, run: dict) -> None:
    """Writes metrics.json, last of all: from here on the run is finished."""
    write_whole(output_dir / "metrics.json", json.dumps(run, indent=1) + "\n")
