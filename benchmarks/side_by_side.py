"""What the benchmarks share: candidates that take turns, short runs, where figures go."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from groundup.train import machine, report

# What runs compute in.
PRECISION = "bf16" if machine.has_bf16_kernel("cpu") else "fp32"
DTYPE = {"bf16": torch.bfloat16, "fp32": torch.float32}[PRECISION]
FOLDER = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def take_turns(work: dict[str, Callable[[], None]], rounds: int = 7) -> dict[str, float]:
    """Seconds of each piece of work: the median of several rounds, after one to warm up.

    They take turns, so that a slow minute of the machine hits all of them.
    """
    seconds = {name: [] for name in work}
    for round_number in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def train(main: Callable[[list[str]], dict], flags: list[str], updates: int) -> dict:
    """The metrics.json of one run of so many updates, by a training script's `main`."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"--max_steps={updates}", f"--output_dir={folder}/run", "--eval_strategy=no"]
        fixed += ["--save_strategy=no", "--disable_tqdm=true"]
        return main([*flags, *fixed])


def ablate(
    main: Callable[[list[str]], dict],
    fixed: list[str],
    variants: dict[str, list[str]],
    score: str,
    updates: int,
    seeds: int,
) -> list[dict]:
    """Trains variants of one config, each with some seeds: a row of an ablation's table for each.

    Args:
        main: of a training script.
        fixed: flags of all.
        variants: what each is called -> its own flags.
        score: name of the metric.
        updates: of each run.
        seeds: how many runs a variant has; their seeds are 0, 1, ...

    Returns:
        A dictionary for each variant: its mean `score`, the `values` of its seeds, and more.
    """
    rows = []
    for name, flags in variants.items():
        runs = [train(main, [*fixed, *flags, f"--seed={i}"], updates) for i in range(seeds)]
        values = [run["metrics"][score] for run in runs]
        rows.append(
            {
                "variant": name,
                "score": statistics.mean(values),
                "values": values,
                "updates": updates,
                "train_seconds": [run["train_seconds"] for run in runs],
                "commit": report.COMMIT,
            }
        )
        print(rows[-1])
    return rows


def autocast() -> torch.autocast:
    """Mixed precision as in runs: bf16, where this CPU has a kernel for it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16")


def large_product() -> float:
    """FLOP/s of a large product on this machine: what a training step can hope for."""
    a = torch.randn(4096, 1024, dtype=DTYPE)
    b = torch.randn(1024, 1024, dtype=DTYPE)
    seconds = take_turns({"product": lambda: [a @ b for _ in range(10)]})["product"]
    return 10 * 2 * 4096 * 1024 * 1024 / seconds


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Where the time of a training step goes: the share of each operation, largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    events = sorted(events, key=lambda event: -event.self_cpu_time_total)[:10]
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in events}


def write(name: str, content: dict) -> None:
    """Writes results/benchmarks/<name>.json, with where the figures come from."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(content | report.provenance(), indent=1) + "\n"
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
