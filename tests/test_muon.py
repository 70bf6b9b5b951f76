"""Muon against the singular value decomposition, its other half against torch's own AdamW."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.models.gpt import GPTConfig, GPTForCausalLM
from groundup.models.resnet import ResNetConfig, ResNetForImageClassification
from groundup.train import machine, muon
from groundup.train.muon import Muon, orthogonalize
from groundup.train.recipe import muon_groups


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ orthogonalising


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (64, 16), (32, 32)])
def test_orthogonalize_keeps_the_directions_and_evens_the_sizes(
    rows, columns, has_kernel, monkeypatch
):
    """X = U S V^T becomes U D V^T, with D near 1: seen in the basis of the decomposition."""
    u, _, vh = torch.linalg.svd(matrices(rows, columns), full_matrices=False)
    sizes = torch.linspace(1, 0.1, min(rows, columns))  # ten to one
    monkeypatch.setattr(machine, "has_bf16_kernel", lambda device_type: has_kernel)
    result = orthogonalize((u * sizes @ vh)[None])[0]
    assert result.dtype == (torch.bfloat16 if has_kernel else torch.float32)
    result = result.float()
    assert result.shape == (rows, columns)
    inside = u.mT @ result @ vh.mT
    diagonal = inside.diagonal()
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (inside - diagonal.diag()).abs().max() < 0.05
    # Nothing outside of what the matrix spans.
    assert (u @ inside @ vh - result).abs().max() < 0.02


def test_a_batch_is_orthogonalised_as_its_matrices_are():
    batch = matrices(3, 24, 8)
    batch[1] *= 1e-3  # the size of one says nothing about the others
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in batch])
    torch.testing.assert_close(orthogonalize(batch), alone, atol=0.02, rtol=0)


def test_orthogonalize_leaves_zero_at_zero():
    assert not orthogonalize(torch.zeros(1, 8, 4)).any()


# ------------------------------------------------------------------------------------ optimising


RATES = SimpleNamespace(
    muon_learning_rate=0.1, muon_momentum=0.8, learning_rate=0.01, weight_decay=0.3
)


@pytest.mark.parametrize(
    "model",
    [
        CNNForImageClassification(CNNConfig(hidden_sizes=(16, 24), depth=1, whitening=True)),
        ResNetForImageClassification(ResNetConfig(hidden_sizes=(8, 16), depths=(1, 1))),
    ],
    ids=["cnn", "resnet"],
)
def test_filters_keep_their_norm_and_a_classifier_has_weight_decay(model):
    filters, heads, rest = muon_groups(model, RATES)  # no hidden matrix is left over
    assert filters["keep_norm"] and filters["use_muon"] and filters["weight_decay"] == 0
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    trained = {id(m.weight) for m in convolutions if isinstance(m.weight, torch.nn.Parameter)}
    assert {id(p) for p in filters["params"]} == trained
    assert heads["params"] == [model.classifier.weight] and heads["weight_decay"] == 0.3
    assert all(p.ndim == 1 for p in rest["params"]) and rest["weight_decay"] == 0
    Muon([filters, heads, rest]).step()  # without gradients, nothing happens


def test_filters_before_a_norm_keep_theirs_in_a_pre_activation_net_too():
    config = ResNetConfig(hidden_sizes=(8, 16), depths=(1, 2), pre_activation=True)
    model = ResNetForImageClassification(config)
    blocks = [block for stage in model.resnet.stages for block in stage.blocks]
    expected = [model.resnet.stem.conv, *(block.branch[0] for block in blocks)]
    (filters,) = (group for group in muon_groups(model, RATES) if group.get("keep_norm"))
    assert {id(p) for p in filters["params"]} == {id(conv.weight) for conv in expected}


def test_of_filters_with_a_norm_behind_only_the_direction_counts():
    """A step from weights that are seven times as large ends at the same weights."""
    ends = []
    for size in (1, 7):
        p = torch.nn.Parameter(size * matrices(8, 4, 3, 3))
        group = {"params": [p], "use_muon": True, "keep_norm": True, "lr": 0.1, "weight_decay": 0.0}
        steps_of(Muon([group]), [p], 3)
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1])
    assert 0.7 < ends[0].norm() / 8**0.5 < 1.3


def steps_of(optimizer, parameters, count: int, seed: int = 0) -> None:
    """Updates on random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_the_rest_is_trained_by_adamw():
    shapes = ((5, 7), (3,))
    ours = [matrices(*shape).requires_grad_() for shape in shapes]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    group = {"params": ours, "use_muon": False, "lr": 0.01, "weight_decay": 0.1}
    steps_of(Muon([group], betas=(0.8, 0.95), eps=1e-6), ours, 20)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    steps_of(reference, theirs, 20)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(4, 16), (16, 4)])
def test_a_first_step_of_muon(rows, columns):
    """Of size lr in every direction, times sqrt(rows / columns) where tall; weights decay first."""
    weight, gradient = matrices(rows, columns), matrices(rows, columns, seed=1)
    p = weight.clone().requires_grad_()
    p.grad = gradient
    Muon([{"params": [p], "use_muon": True, "lr": 0.1, "weight_decay": 0.5}]).step()
    scale = 0.1 * max(1, rows / columns) ** 0.5
    expected = weight * (1 - 0.1 * 0.5) - scale * orthogonalize(gradient[None])[0].float()
    torch.testing.assert_close(p.detach(), expected, atol=0.06 * scale, rtol=0)


def test_muon_refuses_vectors():
    group = {"params": [torch.zeros(3, requires_grad=True)], "use_muon": True}
    with pytest.raises(ValueError, match="Muon takes matrices"):
        Muon([{**group, "lr": 0.1, "weight_decay": 0.0}])


def both_kinds():
    """An optimiser with a parameter of each kind, and those two."""
    pair = [matrices(6, 4).requires_grad_(), matrices(4).requires_grad_()]
    groups = [
        {"params": [p], "use_muon": p.ndim == 2, "lr": 0.02, "weight_decay": 0.1} for p in pair
    ]
    return Muon(groups), pair


def test_a_saved_state_goes_on_to_the_same_bits(tmp_path):
    straight, expected = both_kinds()
    steps_of(straight, expected, 3)
    torch.save([straight.state_dict(), expected], tmp_path / "state.pt")
    steps_of(straight, expected, 4, seed=1)

    resumed, found = both_kinds()
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state)
    for p, value in zip(found, values, strict=True):
        p.data.copy_(value)
    steps_of(resumed, found, 4, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_muon_solves_least_squares():
    inputs, truth = matrices(64, 12), matrices(12, 8, seed=1)
    weight = torch.zeros(12, 8, requires_grad=True)
    optimizer = Muon([{"params": [weight], "use_muon": True, "lr": 0.1, "weight_decay": 0.0}])
    losses = []
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
        loss = (inputs @ (weight - truth)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


# ------------------------------------------------------------------------- who is trained by what


@pytest.mark.parametrize("tied", [True, False])
def test_only_hidden_matrices_go_to_muon(tied):
    config = GPTConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=tied,
    )
    model = GPTForCausalLM(config)
    frozen = model.model.layers[0]
    for p in frozen.parameters():
        p.requires_grad_(False)
    rates = {"muon_learning_rate": 0.02, "muon_momentum": 0.9, "learning_rate": 0.001}
    args = SimpleNamespace(**rates, weight_decay=0.1)
    muon, adamw = muon_groups(model, args)
    assert (muon["use_muon"], muon["lr"]) == (True, 0.02)
    assert (adamw["use_muon"], adamw["lr"]) == (False, 0.001)

    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    in_muon = {names[id(p)] for p in muon["params"]}
    in_adamw = {names[id(p)] for p in adamw["params"]}
    assert len(muon["params"]) + len(adamw["params"]) == len(names)  # each once ...
    assert in_muon | in_adamw == set(names.values())  # ... and none left out
    expected = {n for n in names.values() if ".layers." in n and n.endswith(".weight")}
    assert in_muon == {n for n in expected if "norm" not in n}
    assert "model.embed_tokens.weight" in in_adamw and "model.embed_positions.weight" in in_adamw
    assert ("lm_head.weight" in in_adamw) is not tied


# ---------------------------------------------------------------------------------------- sharded

# Two processes of torch alone, which start in a second: the file is imported without its package.
TWO_PROCESSES = """
import importlib.util, os, sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

spec = importlib.util.spec_from_file_location("muon", sys.argv[1])
muon = importlib.util.module_from_spec(spec)
spec.loader.exec_module(muon)
rank = 0 if os.fork() else 1
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)

def trained(shard):
    torch.manual_seed(0)
    # Matrices of both forms, two of one shape, one of a height that two do not divide.
    sizes = (6, 8), (8, 8), (8, 8), (8, 5)
    model = torch.nn.Sequential(*(torch.nn.Linear(*size) for size in sizes))
    if shard:
        fully_shard(model)
        assert model[0].weight.to_local().shape == (4, 6)
    matrices = [layer.weight for layer in model]
    vectors = [layer.bias for layer in model]
    shared = {"lr": 0.1, "weight_decay": 0.1}
    optimizer = muon.Muon([
        {"params": matrices, "use_muon": True, **shared},
        {"params": vectors, "use_muon": False, **shared},
    ])
    for _ in range(3):
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [muon.gather(p) for p in model.parameters()]

for whole, sharded in zip(trained(False), trained(True), strict=True):
    torch.testing.assert_close(sharded, whole)
dist.destroy_process_group()
if rank == 0 and os.wait()[1] != 0:
    sys.exit("the other process failed")
"""


def test_sharded_matrices_get_the_update_of_whole_ones(tmp_path):
    """FSDP: half of each matrix in each of two processes."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, muon.__file__, str(tmp_path / "meet")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
