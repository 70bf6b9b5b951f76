"""The degradation that shortcuts cure (He et al. 2015, figures 1 and 6).

    python benchmarks/resnet_depth.py [--updates 400]

Networks of 20 and of 56 layers, with and without shortcuts, else as configs/resnet.yaml: without
them the deeper one should be worse on the very pictures that it is trained on, which cannot be
overfitting. None is skipped as easy, so that all four tell their losses on the same ones.
Pictures of 16 x 16, a quarter of the work. Writes results/benchmarks/resnet_depth.json, and its
figure for the card.
"""

import argparse
import json
import tempfile
from pathlib import Path

from side_by_side import FOLDER, write

from groundup.train import resnet

DEPTHS = {20: 3, 56: 9}  # layers -> blocks a stage
TITLE = "What shortcuts are for"
TEXT = (
    "The same network of 20 and of 56 layers, with shortcuts and without (`--shortcut none`), {} "
    "updates on pictures of 16 x 16. The loss on the pictures that it is trained on ends, plain, "
    "at {:.2f} with 20 layers and at {:.2f} with 56; with shortcuts, at {:.2f} and {:.2f}."
)
SMALL = ["--small_size=16", "--small_epochs=1000", "--skip_easy=0"]


def losses(blocks: int, shortcut: str, updates: int) -> list[dict]:
    """Training loss over the updates, each the mean of the 20 before."""
    with tempfile.TemporaryDirectory() as folder:
        resnet.main(
            [
                *SMALL,
                "--depths",
                *map(str, 3 * [blocks]),
                f"--shortcut={shortcut}",
                f"--max_steps={updates}",
                "--logging_steps=20",
                f"--save_steps={updates}",
                "--disable_tqdm=true",
                f"--output_dir={folder}/run",
            ]
        )
        state = Path(folder, "run", f"checkpoint-{updates}", "trainer_state.json")
        log = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [{"update": e["step"], "loss": e["loss"]} for e in log if "loss" in e]


def plot(rows: list[dict], path: Path) -> None:
    """The four curves: a colour a depth, dashed without shortcuts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        plain = row["shortcut"] == "none"
        axes.plot(
            [point["update"] for point in row["curve"]],
            [point["loss"] for point in row["curve"]],
            "--" if plain else "-",
            color="C0" if row["layers"] == 20 else "C1",
            label=f"{'plain' if plain else 'residual'}, {row['layers']} layers",
        )
    axes.set(xlabel="updates", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Trains all four and writes their curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=400)
    args = parser.parse_args()
    rows = []
    for layers, blocks in DEPTHS.items():
        for shortcut in ("zero_pad", "none"):
            curve = losses(blocks, shortcut, args.updates)
            rows.append({"layers": layers, "shortcut": shortcut, "curve": curve})
            print(layers, shortcut, curve[-1])
    plot(rows, FOLDER / "resnet_depth.png")
    ends = {(row["shortcut"], row["layers"]): row["curve"][-1]["loss"] for row in rows}
    order = [(shortcut, layers) for shortcut in ("none", "zero_pad") for layers in DEPTHS]
    text = TEXT.format(args.updates, *(ends[one] for one in order))
    write("resnet_depth", {"title": TITLE, "text": text, "rows": rows})


if __name__ == "__main__":
    main()
