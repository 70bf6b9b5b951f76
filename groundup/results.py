"""The published figures: from runs to `results/`, `pretrained/` and the README's table.

    python -m groundup.results                          # write the README's table
    python -m groundup.results --publish runs/gpt_*     # runs of one config, one per seed
    python -m groundup.results --verify gpt             # score the models in pretrained/ again
    python -m groundup.results --code                   # give these the code of models/

A published figure is the mean over the seeds; the first run given becomes the model in
`pretrained/`.
"""

import argparse
import importlib
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import transformers
import yaml
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_relative_import_files

from groundup.train.recipe import FREE

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PRETRAINED, README = ROOT / "results", ROOT / "pretrained", ROOT / "README.md"
MODELS = ROOT / "models"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
# What rounding the weights to bf16, or another number of threads, may change in a score.
TOLERANCE = 1e-3
TOLERANCES = {"bleu": 0.2, "pseudo_perplexity": 0.2}  # of those that are not between 0 and 1
# What another machine may, which computes in another precision: in fp32 rather than bf16 a beam
# finds other words here and there; `seq2seq` has 0.32 BLEU less, `seq2seq_transformer` 0.32 more.
ELSEWHERE = TOLERANCES | {"bleu": 0.4}


def summarise(runs: list[dict]) -> dict:
    """One result from the runs of one config: mean, deviation and values of each metric.

    Raises:
        ValueError: the runs are of more than one config, data or commit, or two have one seed.
    """
    first = runs[0]
    for key in ("system", "config", "data", "commit", "versions", "hardware", "precision"):
        if any(run[key] != first[key] for run in runs):
            raise ValueError(f"the runs differ in {key}: {[run[key] for run in runs]}")
    if not first["commit"] or first["commit"].endswith("-dirty"):
        raise ValueError(
            f"the runs are of no commit ({first['commit']}): commit the code, then run"
        )
    flags = [flag for run in runs for flag in run["command"].split() if flag.startswith("--")]
    names = {flag[2:].partition("=")[0] for flag in flags} - {"seed", "config"}
    if others := [name for name in names if not FREE.match(name)]:
        raise ValueError(f"the runs have settings that are not in their config: {sorted(others)}")
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"two runs have the same seed: {seeds}")
    metrics = {}
    for name in first["metrics"]:
        values = [run["metrics"][name] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        metrics[name] = {"mean": statistics.mean(values), "deviation": deviation, "values": values}
    kept = ("system", "config", "data", "hardware", "precision", "versions", "commit", "command")
    return {
        **{key: first[key] for key in kept},
        "seeds": seeds,
        "metrics": metrics,
        "train_seconds": [run["train_seconds"] for run in runs],
        "peak_memory_bytes": [run["peak_memory_bytes"] for run in runs],
    }


def publish(folders: list[Path]) -> None:
    """Runs of one config -> `results/<config>.json` and, of the first, `pretrained/<config>/`.

    The weights are rounded to bf16, half the size, unless that changes the score.
    """
    runs = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in folders]
    result = summarise(runs)
    bar_of(result["config"])  # a clear error now, rather than when half is written
    score = next(iter(result["metrics"]))
    model = PRETRAINED / result["config"]
    with tempfile.TemporaryDirectory(dir=PRETRAINED) as staging:
        export = Path(staging) / result["config"]
        left_out = shutil.ignore_patterns("checkpoint-*", "settings.json", ".*")
        shutil.copytree(folders[0], export, ignore=left_out)
        refresh_code(export)
        round_weights(export)
        again, note = rescore(result, export), "Its weights are rounded to bf16 and load as fp32"
        if not same(result["config"], score, again[score], runs[0]["metrics"][score]):
            note = "Its weights are kept in fp32, since bf16 changes the score"
            for name in ("model.safetensors", "config.json"):
                shutil.copy(folders[0] / name, export)
            again = rescore(result, export)
        result["pretrained"] = again
        scored = json.dumps({**runs[0], "metrics": again}, indent=1) + "\n"
        (export / "metrics.json").write_text(scored, encoding="utf-8")
        retitle(export / "README.md", folders[0].name, result["config"])
        mean = result["metrics"][score]["mean"]
        seeds = f"mean of {len(runs)} seeds: {mean:.4f}" if len(runs) > 1 else "one seed"
        others = "".join(f", {name} {again[name]:.4f}" for name in again if name != score)
        if len(runs) > 1:
            add_means(export / "README.md", result)
        add_to_card(
            export / "README.md",
            [
                "## These weights",
                "",
                f"{note}; scored again: {score} {again[score]:.4f} ({seeds}){others}."
                f" {bar_of(result['config']).get('note', '')}".rstrip(),
                "",
                *ablations(result["config"]),
                *studies(result["config"], export / "figures"),
            ],
        )
        shutil.rmtree(model, ignore_errors=True)
        export.rename(model)
    text = json.dumps(result, indent=1) + "\n"
    (RESULTS / f"{result['config']}.json").write_text(text, encoding="utf-8")
    print(f"wrote {RESULTS / result['config']}.json and {model}")


def retitle(card: Path, old: str, new: str) -> None:
    """A card is called after the folder of its run (`gpt_0`): now after the config."""
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace(f"{old}: ", f"{new}: "), encoding="utf-8")


def add_means(card: Path, result: dict) -> None:
    """Says in a card's table, above its data, what the mean over the seeds of each metric is."""
    means = ", ".join(
        f"{name} {metric['mean']:.4f} ± {metric['deviation']:.4f}"
        for name, metric in result["metrics"].items()
    )
    row = f"| Mean of {len(result['seeds'])} seeds, of which this is one | {means} |\n"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("| Data |", f"{row}| Data |", 1), encoding="utf-8")


def add_to_card(card: Path, lines: list[str]) -> None:
    """Adds lines to the end of a card, before its footer."""
    body, footer = card.read_text(encoding="utf-8").rsplit("\n---\n", 1)
    text = "\n".join([body, *lines, "", "---", footer])
    card.write_text(text, encoding="utf-8")


def ablations(config: str) -> list[str]:
    """A card's section on what the choices are worth, where `benchmarks/` has measured it."""
    path = RESULTS / "benchmarks" / f"{config}_ablations.json"
    if not path.exists():
        return []
    measured = json.loads(path.read_text(encoding="utf-8"))
    return [
        "## What the choices are worth",
        "",
        f"One thing changed at a time, {measured['setting']} (commit {measured['commit']}):",
        "",
        f"| | {measured['metric']} | updates |",
        "|---|---|---|",
        *(
            f"| {row['variant']} | {row['score']:.4f} | {row['updates']} |"
            for row in measured["rows"]
        ),
    ]


def studies(config: str, figures: Path) -> list[str]:
    """A card's sections on what `benchmarks/` has drawn for it; copies the pictures there."""
    lines = []
    configs = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for path in sorted((RESULTS / "benchmarks").glob(f"{config}_*.json")):
        picture = path.with_suffix(".png")
        # What begins with `rnn_gru_` belongs to that config, and not to `rnn`.
        whose = max((c for c in configs if path.stem.startswith(f"{c}_")), key=len)
        if not picture.exists() or whose != config:
            continue
        study = json.loads(path.read_text(encoding="utf-8"))
        shutil.copy(picture, figures)
        text = f"{study['text']} (Commit {study['commit']}.)"
        lines += ["", f"## {study['title']}", "", text, ""]
        lines += [f"![{study['title']}](figures/{picture.name})"]
    return lines


def same(config: str, name: str, score: float, other: float, tolerances=TOLERANCES) -> bool:
    """Whether a metric, measured twice, has the same value."""
    of_this = bar_of(config).get("tolerance", {})
    return abs(score - other) <= of_this.get(name, tolerances.get(name, TOLERANCE))


def round_weights(folder: Path) -> None:
    """Saves a model's weights in bf16, half the size, and has them load as fp32.

    Not every CPU has a kernel for bf16: without, Tiny GPT takes some six times as long to write.
    """
    config = AutoConfig.from_pretrained(folder)
    name = next(k for k, v in config.auto_map.items() if v.endswith(f".{config.architectures[0]}"))
    auto_class = getattr(transformers, name)
    auto_class.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(settings | {"dtype": "float32"}, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def rescore(result: dict, folder: Path) -> dict[str, float]:
    """The metrics of the model in a folder, measured by its row's own script on the same data.

    Raises:
        ValueError: the data that is found here is not what the published score was measured on.
    """
    script = importlib.import_module(f"groundup.train.{result['system']}")
    config = ROOT / "configs" / f"{result['config']}.yaml"
    flags = ["--config", str(config), "--evaluate_only", "--output_dir", str(folder)]
    run = script.main(flags)
    if run["data"]["fingerprint"] != result["data"]["fingerprint"]:
        raise ValueError(
            f"{result['config']} was scored on {result['data']['name']}, but what is here is "
            f"{run['data']['name']} ({run['data']['source']}): set GROUNDUP_DATA, or use the Hub"
        )
    return run["metrics"]


def verify(row: str) -> bool:
    """Scores every model of a row in `pretrained/` again; True if all give what they gave."""
    results = [r for r in read_results() if r["system"] == row and "pretrained" in r]
    if not results:
        raise ValueError(f"no result of row {row!r} has a model in pretrained/")
    all_agree = True
    for result in results:
        again = rescore(result, PRETRAINED / result["config"])
        for name, published in result["pretrained"].items():
            agrees = same(result["config"], name, again[name], published, ELSEWHERE)
            all_agree &= agrees
            verdict = "agrees" if agrees else "does NOT agree"
            print(f"{result['config']}: {name} {again[name]:.4f} ({verdict} with {published:.4f})")
    return all_agree


def code_of(folder: Path) -> list[Path]:
    """The files of `models/` that a saved model needs: its own, and what that imports."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    module = config["auto_map"]["AutoConfig"].split(".")[0]
    own = MODELS / f"{module}.py"
    return [own, *map(Path, get_relative_import_files(own))]


def refresh_code(folder: Path) -> None:
    """Published weights get today's code, which a test holds them to; `--verify` tells if they fit.

    Else what loads with `trust_remote_code` would have the mistakes of the day it was trained.
    """
    for old in folder.glob("*.py"):
        old.unlink()
    for file in code_of(folder):
        shutil.copy(file, folder)


def read_results() -> list[dict]:
    """All published results, in the order of their names."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]


def bar_of(config: str) -> dict:
    """What a run has to reach, and what it stands beside, from `results/bars.yaml`.

    Raises:
        ValueError: there is no entry for it.
    """
    bars = yaml.safe_load((RESULTS / "bars.yaml").read_text(encoding="utf-8"))
    if config not in bars:
        raise ValueError(f"{RESULTS / 'bars.yaml'} has no entry for {config}")
    return bars[config]


def table(results: list[dict]) -> str:
    """The README's table, in Markdown."""
    rows = [
        "| run | data | score | training | memory | bar | anchor |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        bar = bar_of(result["config"])
        bars = [bar, *bar.get("also", [])]
        scores, reached = zip(*(score_beside(result, one) for one in bars), strict=True)
        took, at_most = time_beside(result, bar)
        seeds = len(result["seeds"])
        cells = [
            f"[`{result['config']}`](configs/{result['config']}.yaml)",
            result["data"]["name"],
            f"{', '.join(scores)} ({seeds} seed{'s' * (seeds > 1)})",
            took,
            f"{max(result['peak_memory_bytes']) / 2**30:.2f} GiB",
            ", ".join(filter(None, [*reached, at_most])) or "none",
            bar["anchor"],
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def time_beside(result: dict, bar: dict) -> tuple[str, str]:
    """How long training took, and the most that it was to take with whether that was reached."""
    seconds = statistics.mean(result["train_seconds"])
    took = f"{seconds:.0f} s{' of one core' * (result['hardware']['cores'] == 1)}"
    took += " in fp32" * (result.get("precision") == "fp32")
    if "seconds" not in bar:
        return took, ""
    return took, f"≤ {bar['seconds']} s{': **not reached**' * (seconds > bar['seconds'])}"


def score_beside(result: dict, bar: dict) -> tuple[str, str]:
    """A score with its unit, and the bar with whether it was reached, as the table has them."""
    metric = result["metrics"][bar["metric"]]
    spread = f" ± {metric['deviation']:.4f}" if metric["deviation"] is not None else ""
    score = f"**{metric['mean']:.4f}**{spread} {bar['unit']}"
    if "bar" not in bar:
        return score, ""
    reached = metric["mean"] <= bar["bar"] if bar["lower"] else metric["mean"] >= bar["bar"]
    limit = f"{'≤' if bar['lower'] else '≥'} {bar['bar']}{'' if reached else ': **not reached**'}"
    return score, limit


def write_table() -> None:
    """Puts the table between its two marks in the README.

    Raises:
        ValueError: the README lacks a mark.
    """
    text = README.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{README} needs the marks {BEGIN} and {END}, once each, for its table")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table(read_results())}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", nargs="+", type=Path, metavar="RUN", help="runs to publish")
    parser.add_argument("--verify", metavar="ROW", help="score a row's models again")
    parser.add_argument("--code", action="store_true", help="copy models/ into pretrained/")
    args = parser.parse_args()
    try:
        if args.verify:
            sys.exit(0 if verify(args.verify) else 1)
        if args.publish:
            publish(args.publish)
        if args.code:
            for folder in (p for p in PRETRAINED.iterdir() if p.is_dir()):
                refresh_code(folder)
        write_table()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
