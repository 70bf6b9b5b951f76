"""The contract: what every model of Groundup does. The models are declared in `contract.py`."""

import copy
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from contract import ROWS, Row, code_files, gradients, module_of, run, train
from safetensors.torch import save_file
from transformers import AutoConfig
from transformers.modeling_layers import GradientCheckpointingLayer

TESTS = Path(__file__).parent
PRETRAINED = sorted(path.parent for path in (TESTS.parent / "pretrained").glob("*/config.json"))
PUBLISHED = {".safetensors", ".json", ".py", ".md", ".txt", ".jinja"}  # no pickle among them

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def test_names_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)


# ------------------------------------------------------------------------------------- training


@every_row
def test_initial_loss_is_what_theory_says(row: Row):
    """In training and in evaluation, which agree where there is no dropout."""
    model, batch = row.make()
    loss = run(model, batch)["loss"].item()
    evaluated = run(model.eval(), batch)["loss"].item()
    assert loss == pytest.approx(row.initial_loss, rel=row.initial_tolerance)
    assert evaluated == pytest.approx(row.initial_loss, rel=row.initial_tolerance)
    agree = evaluated == pytest.approx(loss, rel=1e-5)
    assert agree is not bool(row.evaluation_differs)


@every_row
def test_one_batch_overfits(row: Row):
    losses, _ = train(row, row.overfit_steps)
    assert losses[-1] < row.overfit_share * losses[0]


@every_row
def test_every_parameter_gets_a_gradient(row: Row):
    """After one step: a weight that begins at zero hides those behind it from the first."""
    _, model = train(row, 1)
    _, batch = row.make()
    unused = row.unused or {}
    found = gradients(model, batch)
    noise = 1e-7 * max(gradient.abs().max() for gradient in found.values())
    # Of a network of channels, each by itself: a dead one does not show in what all have together.
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    by_channel = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, kinds)}
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        if name in unused:
            assert gradient.abs().max() < noise, f"{name} is used after all"
        else:
            parts = gradient if name in by_channel else gradient[None]
            assert (parts.abs().reshape(len(parts), -1).amax(1) > noise).all(), f"{name} is dead"
    assert set(unused) <= {name for name, _ in model.named_parameters()}


@every_row
def test_what_is_not_split_lies_side_by_side(row: Row):
    """FSDP makes a unit of each such module, which must be called: none may lie in another."""
    model, _ = row.make()
    names = [n for n, m in model.named_modules() if type(m).__name__ in model._no_split_modules]
    assert names or not model._no_split_modules
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}.")]


@every_row
def test_the_loss_of_accumulated_batches_is_divided_once(row: Row):
    """Trainer leaves that to a model which takes `**kwargs`, unless it says that it does not."""
    model, batch = row.make()
    parameters = inspect.signature(model.forward).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if getattr(model, "accepts_loss_kwargs", takes_all):
        some, twice = (run(model, batch | {"num_items_in_batch": n})["loss"] for n in (500, 1000))
        torch.testing.assert_close(some, 2 * twice)


@every_row
def test_the_same_seed_gives_the_same_run(row: Row):
    losses, model = train(row, 3, seed=1)
    again, model_again = train(row, 3, seed=1)
    assert losses == again
    state = model_again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    other, _ = train(row, 3, seed=2)
    assert losses != other


@every_row
def test_activation_checkpointing_changes_nothing(row: Row):
    model, batch = row.make()
    if not model.supports_gradient_checkpointing:
        pytest.skip(f"{type(model).__name__} declares no support for it")
    calls = []
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            # a norm or the like inside: hooks of the layer itself stay outside the checkpoint
            inner = next(child for child in module.modules() if not list(child.children()))
            inner.register_forward_hook(lambda *_: calls.append(1))
    loss, expected = run(model, batch)["loss"], gradients(model, batch)
    plain = len(calls) // 2  # of one forward
    model.activation_checkpointing_enable()
    calls.clear()
    found = gradients(model, batch)
    assert len(calls) == 2 * plain > 0, "nothing was computed again in the backward pass"
    torch.testing.assert_close(run(model, batch)["loss"], loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- numerics


@every_row
def test_eager_attention_equals_sdpa(row: Row):
    model, batch = row.make()
    if not model._supports_sdpa:
        pytest.skip(f"{type(model).__name__} has no choice of attention")
    outputs, grads = {}, {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.base_model.config._attn_implementation == implementation
        outputs[implementation] = run(model, batch)
        grads[implementation] = gradients(model, batch)
    torch.testing.assert_close(outputs["sdpa"], outputs["eager"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads["sdpa"], grads["eager"], rtol=1e-5, atol=1e-5)


@every_row
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_equals_single_examples(row: Row, side: str):
    if isinstance(row.padding, str):
        pytest.skip(f"{row.name} has no padding: {row.padding}")
    if side not in row.padding_sides:
        pytest.skip(f"{row.name} takes no padding on the {side}")
    _, model = train(row, 3)  # so that positions and norms have something to say
    for implementation in ("eager", "sdpa") if model._supports_sdpa else ("eager",):
        model.eval().set_attn_implementation(implementation)
        with torch.no_grad():
            pairs = row.padding(model, side)
        assert len(pairs) > 1
        for padded, alone in pairs:
            torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


@every_row
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16_is_finite(row: Row, how: str):
    """And stays near fp32."""
    model, batch = row.make()
    if how == "weights":
        model.to(torch.bfloat16)
        batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        outputs, grads = run(model, batch), gradients(model, batch)
    for name, tensor in (outputs | grads).items():
        assert tensor.isfinite().all(), name
    assert outputs["loss"].item() == pytest.approx(row.initial_loss, rel=row.initial_tolerance * 2)


@every_row
def test_outputs_may_be_tuples(row: Row):
    """By the argument, or by the config, which what is inside a model must not be misled by."""
    model, batch = row.make()
    expected = model.eval()(**batch).to_tuple()
    asked = model(**batch, return_dict=False)
    model.config.return_dict = False
    for found in (asked, model(**batch)):
        assert type(found) is tuple and len(found) == len(expected)
        torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)


# ------------------------------------------------------------------------------ saving, loading


@every_row
def test_saved_and_loaded_is_bit_equal(row: Row, tmp_path):
    _, model = train(row, 2)
    model.eval().save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    _, batch = row.make()
    with torch.no_grad():
        expected, found = run(model, batch), run(loaded, batch)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    settings, again = model.config.to_dict(), loaded.config.to_dict()
    assert settings | {"_name_or_path": ""} == again | {"_name_or_path": ""}


@every_row
def test_a_saved_folder_is_safetensors_and_text_with_its_code(row: Row, tmp_path):
    model, _ = row.make()
    model.save_pretrained(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert {Path(name).suffix for name in files} <= PUBLISHED, files
    assert "model.safetensors" in files
    module = module_of(model)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == module.AUTO_MAP
    code = code_files(Path(module.__file__))
    assert {name for name in files if name.endswith(".py")} == {path.name for path in code}
    for path in code:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@every_row
def test_the_row_is_registered_with_the_auto_classes(row: Row):
    model, _ = row.make()
    module = module_of(model)
    assert {"AutoConfig", "AutoModel", row.auto_class} <= set(module.AUTO_MAP)
    assert type(model) is getattr(module, module.AUTO_MAP[row.auto_class].split(".")[1])
    for auto, path in module.AUTO_MAP.items():
        cls = getattr(module, path.split(".")[1])
        assert cls._auto_class == auto
        if auto != "AutoConfig":
            config = copy.deepcopy(model.config)
            assert type(getattr(transformers, auto).from_config(config)) is cls


# ---------------------------------------------------------- where nobody has heard of Groundup


@pytest.fixture(scope="session")
def elsewhere(request, tmp_path_factory, fresh_python) -> dict[str, str]:
    """What one fresh process, without Groundup, reports of all checkpoints of this session."""
    work = tmp_path_factory.mktemp("elsewhere")
    asked = [i for i in request.session.items if "elsewhere" in i.fixturenames]
    params = [item.callspec.params for item in asked if hasattr(item, "callspec")]
    rows = {given["row"].name: given["row"] for given in params if "row" in given}
    manifest = [entry for row in rows.values() for entry in _publish(row, work / row.name)]
    manifest += [_pretrained(folder, work / "pretrained" / folder.name) for folder in PRETRAINED]
    (work / "manifest.json").write_text(json.dumps(manifest))
    script = TESTS / "load_elsewhere.py"
    fresh_python(script, work / "manifest.json", work / "report.json", cwd=work)
    return json.loads((work / "report.json").read_text())


def _publish(row: Row, folder: Path) -> list[dict]:
    """Saves the row's model to a folder and to the stand-in Hub, with what it answers."""
    _, model = train(row, 2)
    _, batch = row.make()
    model.eval().save_pretrained(folder / "saved")
    repo_id = f"user/contract-{row.name}"
    model.push_to_hub(repo_id)
    known = {"AutoModel": (model.base_model, row.inputs(batch)), row.auto_class: (model, batch)}
    for auto_class, (part, inputs) in known.items():
        _write(inputs, folder / f"{auto_class}.batch")
        with torch.no_grad():
            _write(run(part, inputs), folder / f"{auto_class}.expected")
    entry = {"auto_classes": list(known), "known": str(folder)}
    return [
        entry | {"name": f"{row.name}/folder", "source": str(folder / "saved")},
        entry | {"name": f"{row.name}/hub", "source": repo_id},
    ]


def _pretrained(source: Path, folder: Path) -> dict:
    """The row that this trained model belongs to says what may be put into it."""
    config = AutoConfig.from_pretrained(source)
    (name,) = config.architectures
    row = next(row for row in ROWS if type(row.make()[0]).__name__ == name)
    folder.mkdir(parents=True)
    _write(row.example(config), folder / f"{row.auto_class}.batch")
    entry = {"name": source.name, "source": str(source), "known": str(folder)}
    return entry | {"auto_classes": [row.auto_class]}


def _write(tensors: dict, path: Path) -> None:
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)


@every_row
def test_remote_code_loads_from_a_folder(row: Row, elsewhere):
    assert elsewhere[f"{row.name}/folder"] == "ok", elsewhere[f"{row.name}/folder"]


@every_row
def test_remote_code_loads_from_the_hub(row: Row, elsewhere):
    assert elsewhere[f"{row.name}/hub"] == "ok", elsewhere[f"{row.name}/hub"]


@pytest.mark.skipif(not PRETRAINED, reason="nothing has been trained into pretrained/ yet")
@pytest.mark.parametrize("folder", PRETRAINED, ids=lambda folder: folder.name)
def test_pretrained_loads_elsewhere(folder: Path, elsewhere):
    assert elsewhere[folder.name] == "ok", elsewhere[folder.name]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= PUBLISHED | {".png", ".svg", ".model"}, files


@every_row
def test_pushed_and_loaded_here_without_remote_code(row: Row, hub, elsewhere, tmp_path):
    """With Groundup imported, no flag is needed, on the Hub either."""
    repo_id = f"user/contract-{row.name}"
    assert {Path(name).suffix for name in hub.files(repo_id)} <= PUBLISHED | {""}  # .gitattributes
    model = getattr(transformers, row.auto_class).from_pretrained(repo_id)
    assert type(model) is type(row.make()[0])
    assert math.isfinite(run(model, row.make()[1])["loss"].item())
    model.save_pretrained(tmp_path)  # a copy stands by itself, and does not refer to the Hub
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == module_of(model).AUTO_MAP
