"""SIGKILL at random moments, saving included: does a run always end with the same bits?

    python benchmarks/faults.py [--trials 20]

A tiny GPT (dropout, Muon and AdamW, a checkpoint every second update) runs once undisturbed. Then,
in each trial, a process with the same command is killed; the command is repeated, and perhaps
killed again, until a process comes to its end. It must have resumed from the newest checkpoint, and
its model must have the bits of the undisturbed one. Half of the trials are killed while a
checkpoint is being written, the others at any moment. Writes results/benchmarks/faults.json.

To start a process costs ten seconds of imports. Here one process has imported all and forks: what
runs and is killed are real processes nevertheless.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from groundup.train import gpt, recipe, report

OUTPUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "faults.json"
STEPS, SAVE_STEPS = 60, 2
SETTINGS = f"""
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
max_position_embeddings: 32
hidden_dropout: 0.1
attention_dropout: 0.1
max_steps: {STEPS}
per_device_train_batch_size: 8
muon_learning_rate: 0.02
learning_rate: 5e-3
warmup_steps: 10
logging_steps: 1
save_steps: {SAVE_STEPS}
disable_tqdm: true
"""
WORDS = ["the", "a", "king", "queen", "fool", "walks", "sings", "with", "sword", "crown", "night"]
TOO_EARLY = "killed before"
SECONDS = 600  # nothing here takes so long


class Run:
    """One command and its folder, in one process after the other."""

    def __init__(self, files: Path, name: str):
        self.folder, self.log = files / name, files / f"{name}.log"
        self.saving = self.folder / ".saving"  # is there while a checkpoint is written
        config, text = str(files / "faults.yaml"), str(files / "text.txt")
        self.flags = ["--config", config, "--text", text, "--output_dir", str(self.folder)]

    def start(self) -> int:
        """A new process that trains; its number."""
        self.log.write_text("")
        if process := os.fork():
            return process
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout.reconfigure(line_buffering=True)  # what a killed process had said is kept
        status = 1
        try:
            gpt.main(self.flags)
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)  # not back into the code of the process that forked

    def finish(self) -> None:
        """The command, undisturbed."""
        process = self.start()
        if os.waitpid(process, 0)[1] != 0:
            raise RuntimeError(f"a run failed:\n{self.log.read_text()}")

    def kill(self, moment: Callable[[], bool]) -> dict | None:
        """The command, killed when `moment` is true: what was so then. None: it ended before."""
        begun, on_the_clock, process = time.monotonic(), time.time(), self.start()
        while not moment():
            if os.waitpid(process, os.WNOHANG)[0]:
                return None
            if time.monotonic() > begun + SECONDS:
                raise TimeoutError(f"a run does not end:\n{self.log.read_text()}")
            time.sleep(0.0005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if (self.folder / "metrics.json").exists():
            return None
        resumed_from = self.resumed_from()
        first = resumed_from if isinstance(resumed_from, int) else 0
        # Not what a process that was killed before has left there.
        was_saving = self.saving.exists() and self.saving.stat().st_mtime >= on_the_clock - 0.01
        return {
            "seconds": round(time.monotonic() - begun, 2),
            "after_update": first + self.log.read_text().count("'loss'"),
            "while_saving": was_saving,
            "half_written_files": len(list(self.saving.rglob("*.*"))) if was_saving else 0,
            "newest_checkpoint": self.newest(),
            "resumed_from": resumed_from,
        }

    def newest(self) -> int | None:
        """The update of the newest checkpoint; each that has its name must be whole."""
        folders = list(self.folder.glob("checkpoint-*"))
        for folder in folders:
            if fault := recipe.damage(folder):
                raise RuntimeError(f"{folder} is damaged: {fault}")
        return max((int(folder.name.split("-")[1]) for folder in folders), default=None)

    def resumed_from(self) -> int | str | None:
        """The update that the last process resumed from, as it says; None: from no checkpoint."""
        said = self.log.read_text()
        if found := re.search(r"resuming from .*checkpoint-(\d+)", said):
            return int(found[1])
        return None if "'loss'" in said else TOO_EARLY

    def model(self) -> bytes:
        """The finished model's weights."""
        return (self.folder / "model.safetensors").read_bytes()


def at_random(chance: random.Random, seconds: float) -> Callable[[], bool]:
    """Any moment of a run that takes so long."""
    until = time.monotonic() + chance.uniform(0, seconds)
    return lambda: time.monotonic() >= until


def while_saving(chance: random.Random, run: Run, saves: int) -> Callable[[], bool]:
    """Up to 30 ms into one of the next `saves` times that a checkpoint is written."""
    number, delay = chance.randrange(saves), chance.uniform(0, 0.03)
    passed, was_saving = 0, run.saving.exists()  # one that was killed has left its own

    def moment() -> bool:
        nonlocal passed, was_saving
        saving = run.saving.exists()
        begins, was_saving = saving and not was_saving, saving
        passed += begins
        if begins and passed > number:
            time.sleep(delay)
            return True
        return False

    return moment


def trial(run: Run, number: int, seconds: float, undisturbed: bytes) -> dict:
    """Kills a run, perhaps more than once, lets it end, and compares."""
    chance = random.Random(number)
    kills = []
    while not kills or chance.random() < 0.3:
        left = 1 - (run.newest() or 0) / STEPS
        if number % 2 == 0:
            moment = while_saving(chance, run, max(1, int(left * STEPS / SAVE_STEPS) - 1))
        else:
            moment = at_random(chance, seconds * left)
        if killed := run.kill(moment):
            kills.append(killed)
        else:  # it was quicker: once more, from the start
            shutil.rmtree(run.folder)
            kills = []
    run.finish()
    # What each process resumed from must be the newest that the one before it had left; of one that
    # was killed while it read the data, nobody can tell.
    resumed = [kill.pop("resumed_from") for kill in kills[1:]] + [run.resumed_from()]
    for kill, found in zip(kills, resumed, strict=True):
        kill["resumed_from"] = found
    return {
        "trial": number,
        "kills": kills,
        "resumed_from_newest": all(
            k["resumed_from"] in (k["newest_checkpoint"], TOO_EARLY) for k in kills
        ),
        "same_bits": run.model() == undisturbed,
    }


def main() -> None:
    """Runs all trials and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    trials = parser.parse_args().trials
    rows = []
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        files = Path(temporary)
        (files / "faults.yaml").write_text(SETTINGS)
        choose = random.Random(0).choice
        sentences = (" ".join(choose(WORDS) for _ in range(8)) for _ in range(500))
        (files / "text.txt").write_text("\n".join(sentences))
        undisturbed = Run(files, "undisturbed")
        begun = time.monotonic()
        undisturbed.finish()
        seconds = time.monotonic() - begun
        for number in range(trials):
            rows.append(trial(Run(files, f"trial-{number}"), number, seconds, undisturbed.model()))
            print(json.dumps(rows[-1]), flush=True)
    kills = [kill for row in rows for kill in row["kills"]]
    content = {
        "trials": trials,
        "same_bits": sum(row["same_bits"] for row in rows),
        "resumed_from_newest": sum(row["resumed_from_newest"] for row in rows),
        "kills": len(kills),
        "kills_while_saving": sum(kill["while_saving"] for kill in kills),
        "seconds_of_a_run": round(seconds, 1),
        "updates": STEPS,
        "updates_between_checkpoints": SAVE_STEPS,
        "rows": rows,
        **report.provenance(),
        "command": report.command(),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        f"{content['same_bits']} of {trials} ended with the same bits, "
        f"{content['resumed_from_newest']} resumed from the newest checkpoint"
    )
    sys.exit(content["same_bits"] < trials or content["resumed_from_newest"] < trials)


if __name__ == "__main__":
    main()
