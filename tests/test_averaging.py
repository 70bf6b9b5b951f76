"""The mean of the last weights, beside NumPy's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from groundup.train.averaging import WeightMean, averaged_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def update(model, mean: WeightMean, step: int, max_steps: int = 10) -> dict[str, np.ndarray]:
    """Moves all weights by chance, then tells `mean`. Returns what they were moved to."""
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weight in model.state_dict().values():
            if weight.is_floating_point():
                weight.add_(torch.randn(weight.shape, generator=draw))
            else:
                weight.fill_(step)
    moved = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    state = SimpleNamespace(global_step=step, max_steps=max_steps)
    mean.on_step_end(None, state, None, model=model)
    return moved


def test_the_last_weights_become_the_mean_of_their_share():
    model, mean = network(), WeightMean(0.3)
    seen = [update(model, mean, step) for step in range(1, 11)]
    for name, weight in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert weight == 10
            continue
        expected = np.mean([weights[name] for weights in seen[-3:]], axis=0)
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(expected, seen[-1][name])


@pytest.mark.parametrize(
    ("share", "max_steps", "count"), [(0.8, 30, 24), (0.3, 10, 3), (0.01, 10, 1), (1.0, 10, 10)]
)
def test_how_many_updates_it_takes_in(share, max_steps, count):
    model, mean = network(), WeightMean(share)
    for step in range(1, max_steps + 1):
        update(model, mean, step, max_steps)
    assert mean.count == count


def test_only_what_is_trained_or_a_norms_is_averaged():
    model = network()
    model.register_buffer("fixed", torch.full((2,), -torch.inf))
    model[0].weight.requires_grad_(False)
    tied = nn.ModuleDict({"one": model, "two": model})
    assert set(averaged_weights(tied)) == {
        f"one.{name}"
        for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }


def test_a_run_that_is_stopped_early_says_so(capsys):
    model, mean = network(), WeightMean(0.5)
    for step in range(1, 8):
        update(model, mean, step)
    mean.on_train_end(None, SimpleNamespace(global_step=7, max_steps=10), None)
    assert "stopped after update 7" in capsys.readouterr().out


def test_before_the_end_it_changes_nothing():
    model, mean = network(), WeightMean(0.5)
    for step in range(1, 10):
        moved = update(model, mean, step)
        for name, weight in model.state_dict().items():
            assert (weight.numpy() == moved[name]).all()
    assert mean.count == 4


def test_it_goes_on_from_its_state():
    model, mean = network(), WeightMean(0.5)
    for step in range(1, 9):
        update(model, mean, step)
    again, other = WeightMean(0.5), network()
    again.load_state_dict(mean.state_dict())
    other.load_state_dict(model.state_dict())
    for step in (9, 10):
        update(model, mean, step)
        update(other, again, step)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_weights_of_few_bits_are_summed_in_many():
    model, mean = nn.Linear(1, 1, bias=False).bfloat16(), WeightMean(1.0)
    for step in range(1, 1001):
        with torch.no_grad():
            model.weight.fill_(1.0 if step <= 700 else 2.0)
        state = SimpleNamespace(global_step=step, max_steps=1000)
        mean.on_step_end(None, state, None, model=model)
    assert abs(mean.mean["weight"].item() - 1.3) < 1e-5
    assert model.weight.dtype == torch.bfloat16
