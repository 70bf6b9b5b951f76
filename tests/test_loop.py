"""The loop for what Trainer does not fit: its log, its checkpoints, a resume to the same bits."""

import json
import os
import pickle
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from groundup.train import loop, recipe
from groundup.train.loop import load_state, train_loop
from groundup.train.recipe import RunArguments, find_checkpoint


def arguments(folder, **changes) -> RunArguments:
    settings = {"max_steps": 10, "logging_steps": 2, "eval_steps": 5, "save_steps": 2}
    settings |= {"output_dir": str(folder), "disable_tqdm": True, "save_total_limit": 2}
    return RunArguments(**(settings | changes))


class Toy:
    """Two layers with dropout, an optimiser each, and a step that draws from every generator."""

    def __init__(self, stop_at: int | None = None):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.stop_at = stop_at
        self.first, self.second = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
        self.stateful = {
            "first": self.first,
            "second": self.second,
            "adam": torch.optim.Adam(self.first.parameters(), lr=0.01),
            "sgd": torch.optim.SGD(self.second.parameters(), lr=0.01, momentum=0.9),
        }

    def step(self, n: int) -> dict[str, float]:
        if n == self.stop_at:
            raise KeyboardInterrupt
        scale = random.uniform(0.5, 1.5)
        inputs = torch.from_numpy(np.random.randn(16, 4)).float() * scale
        hidden = torch.nn.functional.dropout(self.first(inputs).relu(), 0.3)
        loss = (self.second(hidden) - inputs.sum(1, keepdim=True)).square().mean()
        for optimizer in (self.stateful["adam"], self.stateful["sgd"]):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in (self.stateful["adam"], self.stateful["sgd"]):
            optimizer.step()
        return {"loss": loss.item(), "scale": scale}

    def evaluate(self, n: int) -> dict[str, float]:
        return {"score": float(n)}

    def train(self, args, checkpoint=None):
        return train_loop(
            Accelerator(cpu=True), args, self.stateful, self.step, self.evaluate, checkpoint
        )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run without interruption: what it made, its log and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    toy = Toy()
    history, seconds = toy.train(arguments(folder))
    return SimpleNamespace(toy=toy, history=history, seconds=seconds, folder=folder)


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that broke off in its seventh update."""
    with pytest.raises(KeyboardInterrupt):
        Toy(stop_at=7).train(arguments(tmp_path / "run"))
    return tmp_path / "run"


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_state(one: Toy, other: Toy) -> None:
    for name, thing in one.stateful.items():
        a, b = thing.state_dict(), other.stateful[name].state_dict()
        assert pickle.dumps(flat(a)) == pickle.dumps(flat(b)), name


def flat(state):
    """Tensors as bytes, so that states can be compared."""
    if isinstance(state, torch.Tensor):
        return state.detach().numpy().tobytes()
    if isinstance(state, dict):
        return {str(key): flat(value) for key, value in state.items()}
    return [flat(item) for item in state] if isinstance(state, list | tuple) else repr(state)


def test_log_and_evaluations(straight):
    logged = [entry["step"] for entry in straight.history if "loss" in entry]
    evaluated = {entry["step"]: entry["score"] for entry in straight.history if "score" in entry}
    assert logged == [2, 4, 6, 8, 10]
    assert evaluated == {5: 5.0, 10: 10.0}
    assert straight.seconds > 0


def test_a_log_entry_is_the_mean_since_the_last(straight):
    single = Toy()
    losses = [single.step(n)["loss"] for n in range(1, 11)]
    means = [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert [e["loss"] for e in straight.history if "loss" in e] == pytest.approx(means)


def test_the_last_update_is_logged_evaluated_and_saved(tmp_path):
    args = arguments(tmp_path, max_steps=3, logging_steps=100, eval_steps=100, save_steps=100)
    history, _ = Toy().train(args)
    assert [entry["step"] for entry in history] == [3, 3]
    assert checkpoints(tmp_path) == ["checkpoint-3"]


def test_only_the_newest_checkpoints_stay(straight, tmp_path):
    assert checkpoints(straight.folder) == ["checkpoint-10", "checkpoint-8"]
    Toy().train(arguments(tmp_path, save_total_limit=None))
    assert len(checkpoints(tmp_path)) == 5


def test_a_resumed_run_ends_with_the_same_bits(straight, stopped):
    checkpoint = find_checkpoint(stopped)
    assert checkpoint.name == "checkpoint-6"
    resumed = Toy()
    random.seed(5)  # wherever the generators of the new process stand
    np.random.seed(5)
    torch.manual_seed(5)
    history, _ = resumed.train(arguments(stopped), checkpoint)
    assert_same_state(resumed, straight.toy)
    assert history == straight.history
    assert checkpoints(stopped) == checkpoints(straight.folder)


def test_resuming_between_two_log_entries_loses_none_of_the_mean(straight, tmp_path):
    """Checkpoints every 3 updates, the log every 2: a mean is half done when it is saved."""
    with pytest.raises(KeyboardInterrupt):
        Toy(stop_at=4).train(arguments(tmp_path, save_steps=3))
    history, _ = Toy().train(arguments(tmp_path, save_steps=3), tmp_path / "checkpoint-3")
    assert history == straight.history


def test_seconds_add_up_over_a_resume(stopped):
    manifest = stopped / "checkpoint-6" / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"train_seconds": 1000.0}))
    _, seconds = Toy().train(arguments(stopped), stopped / "checkpoint-6")
    assert 1000 < seconds < 1100


def test_a_finished_run_makes_no_further_update(straight, tmp_path):
    shutil.copytree(straight.folder, tmp_path / "run")
    toy = Toy(stop_at=11)
    history, _ = toy.train(arguments(tmp_path / "run"), tmp_path / "run" / "checkpoint-10")
    assert_same_state(toy, straight.toy)
    assert history == straight.history


@pytest.mark.parametrize("name", ["state.pt", "random_0.pt", "log.json", "checkpoint.json"])
def test_a_checkpoint_without_one_of_its_files_is_passed_over(stopped, name, capsys):
    (stopped / "checkpoint-6" / name).unlink()
    assert find_checkpoint(stopped).name == "checkpoint-4"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "checkpoint-6" in said[0] and f"{name} is missing" in said[0]


def test_what_a_killed_save_left_behind_is_cleared_away(stopped):
    (stopped / ".saving").mkdir()
    (stopped / ".saving" / "random_7.pt").write_bytes(b"of another process")
    Toy().train(arguments(stopped), stopped / "checkpoint-6")
    assert checkpoints(stopped) == ["checkpoint-10", "checkpoint-8"]
    assert "random_7.pt" not in checkpoints(stopped / "checkpoint-8")


def test_the_number_of_updates_must_be_said(tmp_path):
    with pytest.raises(ValueError, match="--max_steps"):
        Toy().train(arguments(tmp_path, max_steps=-1))
    assert not checkpoints(tmp_path)


def test_a_system_that_cannot_be_sharded_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"ddp\.yaml"):
        Toy().train(arguments(tmp_path))
    assert not checkpoints(tmp_path)


def test_what_does_not_fit_on_the_disk_is_cleared_away(tmp_path, monkeypatch):
    """The second checkpoint fails; the first one stays."""

    def seal(folder, seconds):
        if list(tmp_path.glob("checkpoint-*")):
            raise OSError(28, "No space left on device")
        recipe.seal(folder, seconds)

    monkeypatch.setattr(loop, "seal", seal)
    with pytest.raises(OSError, match="No space left"):
        Toy().train(arguments(tmp_path))
    assert not (tmp_path / ".saving").exists()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


class Malicious:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["state.pt", "random_0.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(stopped, tmp_path, name):
    trace = tmp_path / "code was run"
    torch.save(Malicious(trace), stopped / "checkpoint-6" / name)
    with pytest.raises(pickle.UnpicklingError):
        load_state(stopped / "checkpoint-6", Toy().stateful, 0)
    assert not trace.exists()
    torch.load(stopped / "checkpoint-6" / name, weights_only=False)
    assert trace.exists()  # it is code indeed
