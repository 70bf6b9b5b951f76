"""One training loop on Accelerate, for systems that have no single loss or need a hot loop.

GANs have two losses, DQN an environment, Word2Vec its own updates: Trainer fits none of them. They
give this loop a `step` and the objects that change under it, and get what Trainer's runs have: a
log, evaluations, whole checkpoints, and a resumed run that ends with the same bits.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, tqdm

from groundup.train.recipe import (
    MANIFEST,
    RunArguments,
    Stopwatch,
    begin,
    keep_newest,
    put_in_place,
    seal,
)

STATE = "state.pt"


def train_loop(
    accelerator: Accelerator,
    args: RunArguments,
    stateful: dict,
    step: Callable[[int], dict[str, float]],
    evaluate: Callable[[int], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
) -> tuple[list[dict], float]:
    """Calls `step` `args.max_steps` times.

    `step(n)` makes update n and returns what is to be logged. It draws at random from the global
    generators of torch, NumPy and Python only: their states are part of a checkpoint, and that is
    why a resumed run ends with the same bits.

    Args:
        stateful: name -> model, optimiser, scheduler, replay buffer, ...: all that changes, each
            with `state_dict` and `load_state_dict` (of tensors, numbers and containers of them).
        evaluate: what to measure every `args.eval_steps` updates; its time is not training time.
        checkpoint: resume from here (`recipe.find_checkpoint`).

    Returns:
        The log, one dictionary per entry with its `step`; the seconds of optimisation.

    Raises:
        ValueError: `args.max_steps` is not set, or FSDP is asked for.
    """
    if accelerator.distributed_type == DistributedType.FSDP:  # one process would save its part only
        raise ValueError(
            "this system does not shard its weights: launch it with configs/accelerate/ddp.yaml or "
            "multi_node.yaml"
        )
    if args.max_steps < 1:
        raise ValueError("set --max_steps: how many updates to make")
    for name in ("logging_steps", "save_steps", "eval_steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value:g}; it counts updates here: give at least 1")
    begin(args, checkpoint)
    # The log, and the sums of the `count` updates since its last entry.
    history, sums, count = [], {}, 0
    stopwatch, first = Stopwatch(), 0
    if checkpoint is not None:
        first, (history, sums, count), stopwatch.seconds = load_state(
            checkpoint, stateful, accelerator.process_index
        )
        accelerator.print(f"resuming from {checkpoint}")

    bar = tqdm(total=args.max_steps, initial=first, disable=args.disable_tqdm)
    stopwatch.mark()
    for n in range(first + 1, args.max_steps + 1):
        for name, value in step(n).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        count += 1
        stopwatch.on_step_end()
        bar.update()
        if n % int(args.logging_steps) == 0 or n == args.max_steps:
            means = {name: total / count for name, total in sums.items()}
            history.append({"step": n, **means})
            bar.write(f"{n}: " + ", ".join(f"{k} {v:.4g}" for k, v in means.items()))
            sums, count = {}, 0
        if evaluate and (n % int(args.eval_steps or args.max_steps) == 0 or n == args.max_steps):
            history.append({"step": n, **evaluate(n)})
            stopwatch.mark()
        if n % int(args.save_steps) == 0 or n == args.max_steps:
            log = (history, sums, count)
            save_state(accelerator, Path(args.output_dir), stateful, n, log, stopwatch.seconds)
            if accelerator.is_main_process:
                keep_newest(Path(args.output_dir), args.save_total_limit)
            stopwatch.mark()
    bar.close()
    return history, stopwatch.seconds


def save_state(accelerator, output_dir: Path, stateful, step: int, log, seconds) -> None:
    """Writes `checkpoint-<step>`: there whole or not at all. Each process adds its random state."""
    staging = output_dir / ".saving"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)  # what a killed run left half written
            staging.mkdir(parents=True)
            content = {name: thing.state_dict() for name, thing in stateful.items()}
            torch.save(content, staging / STATE)
            (staging / "log.json").write_text(json.dumps(log), encoding="utf-8")
        accelerator.wait_for_everyone()
        torch.save(random_states(), staging / f"random_{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            seal(staging, seconds)
            put_in_place(staging, output_dir / f"checkpoint-{step}")
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)  # on a full disk, what was begun
    accelerator.wait_for_everyone()


def load_state(checkpoint: Path, stateful, process_index: int) -> tuple[int, list, float]:
    """Fills the objects from a checkpoint: (step, log, seconds of optimisation).

    Tensors and plain containers only: no pickled code is run.
    """
    content = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    for name, thing in stateful.items():
        thing.load_state_dict(content[name])
    states = torch.load(checkpoint / f"random_{process_index}.pt", weights_only=True)
    python_state = states["python"]
    random.setstate((python_state[0], tuple(python_state[1]), python_state[2]))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    log = json.loads((checkpoint / "log.json").read_text(encoding="utf-8"))
    seconds = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["train_seconds"]
    return int(checkpoint.name.split("-")[1]), log, seconds


def random_states() -> dict:
    """The states of all generators, as tensors and plain containers."""
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.copy()), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
