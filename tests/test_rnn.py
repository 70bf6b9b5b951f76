"""RNN, GRU and LSTM against PyTorch's, the state that is carried, and a run from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import gradients
from peft import LoraConfig, get_peft_model
from test_recipe import assert_refused, assert_same_bits, interrupted_at, toy_text
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from groundup.data_scripts.carried import CarriedBlocks, CarriedStream, check_sizes
from groundup.data_scripts.shakespeare import load_shakespeare
from groundup.data_scripts.tokenization import encode_documents
from groundup.models.from_torch_rnn import (
    layer_from_torch,
    rnn_from_torch,
    tensors_from_torch,
    torch_from_rnn,
)
from groundup.models.recurrent import CELLS, Recurrence, RecurrentLayer, step_by_step
from groundup.models.rnn import RNNConfig, RNNForCausalLM, RNNModel
from groundup.train import recipe, rnn

THEIRS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
VOCABULARY, SIZE, LAYERS = 31, 20, 3
LENGTHS = (9, 12, 4)
close = {"rtol": 1e-5, "atol": 1e-5}
every_cell = pytest.mark.parametrize("cell_type", CELLS)


def stir(*modules):
    """Random numbers in every parameter: fresh biases (0) would hide a mix-up."""
    torch.manual_seed(0)
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, 0, 0.3)


def make_torch(cell_type: str, **options):
    """Embedding, recurrent module and output layer of PyTorch's."""
    parts = (
        nn.Embedding(VOCABULARY, SIZE),
        THEIRS[cell_type](SIZE, SIZE, LAYERS, batch_first=True, **options),
        nn.Linear(SIZE, VOCABULARY, bias=False),
    )
    stir(*parts)
    return parts


def make_rnn(cell_type: str = "lstm", **options) -> RNNForCausalLM:
    shape = {"vocab_size": VOCABULARY, "hidden_size": SIZE, "num_hidden_layers": LAYERS}
    model = RNNForCausalLM(RNNConfig(cell_type=cell_type, **shape | options))
    stir(model)
    return model.eval()


def text_batch(padding: str = "right", lengths=LENGTHS) -> dict:
    """Texts of several lengths, with labels."""
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (len(lengths), max(lengths)))
    mask = torch.ones_like(ids)
    for i, length in enumerate(lengths):
        if padding == "right":
            mask[i, length:] = 0
        else:
            mask[i, :-length] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# ------------------------------------------------------------------------- the same as PyTorch's


@every_cell
@pytest.mark.parametrize("masked", [False, True])
def test_the_way_back_by_hand_is_autograds(cell_type, masked):
    """All outputs and all gradients, in fp64, where a mistake cannot pass for rounding."""
    cell, batch, time, size = CELLS[cell_type], 3, 7, 5
    torch.manual_seed(0)
    shapes = [
        (batch, time, cell.num_gates * size),
        (cell.num_gates * size, size),
        (cell.num_gates * size,),
        *[(batch, size)] * cell.num_states,
    ]
    values = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    wanted = [torch.randn(batch, time, size).double()]  # of all h, and of the last state
    wanted += [torch.randn(batch, size).double() for _ in range(cell.num_states)]
    mask = torch.rand(batch, time, 1) < 0.6 if masked else None
    results = []
    for run in (step_by_step, Recurrence.apply):
        projected, weight, bias, *state = values
        states = run(cell, projected, weight, bias, mask, *state)
        loss = sum((part * w).sum() for part, w in zip(states, wanted, strict=True))
        results.append((states, torch.autograd.grad(loss, values)))
    assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def torch_forward(embedding, recurrent, head, batch, state=None):
    """(loss, scores, state) of uneven texts, padded on the right, by PyTorch's own means."""
    lengths = batch["attention_mask"].sum(1)
    packed = pack_padded_sequence(
        embedding(batch["input_ids"]), lengths, batch_first=True, enforce_sorted=False
    )
    hidden, state = recurrent(packed, state)
    hidden, _ = pad_packed_sequence(hidden, batch_first=True)
    scores = head(hidden)
    targets = batch["labels"][:, 1:].flatten()
    loss = nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), targets)
    return loss, scores, state


@every_cell
@pytest.mark.parametrize("lengths", [(12, 12, 12), LENGTHS])
def test_outputs_and_gradients_are_those_of_torch(cell_type, lengths):
    parts, batch = make_torch(cell_type), text_batch(lengths=lengths)
    model = rnn_from_torch(*parts)
    loss, scores, state = torch_forward(*parts, batch)
    found = model.eval()(**batch)
    real = batch["attention_mask"].bool()
    assert_close(found.loss, loss, **close)
    assert_close(found.logits[real], scores[real], **close)
    state = state if cell_type == "lstm" else (state,)
    for i, layer in enumerate(found.past_key_values.layers):
        assert_close(layer, tuple(part[i] for part in state), **close)

    loss.backward()
    theirs = ({name: p.grad for name, p in part.named_parameters()} for part in parts)
    expected, ours = tensors_from_torch(*theirs), gradients(model, batch)
    assert expected.keys() == ours.keys()
    for name, gradient in ours.items():
        assert_close(gradient, expected[name], **close, msg=lambda text, name=name: name + text)


@every_cell
def test_gradients_by_the_first_state_are_those_of_torch(cell_type):
    _, recurrent, _ = make_torch(cell_type)
    layer = RecurrentLayer(cell_type, SIZE, SIZE)
    layer.load_state_dict(layer_from_torch(recurrent.state_dict(), 0))
    one = THEIRS[cell_type](SIZE, SIZE, batch_first=True)
    one.load_state_dict({name: recurrent.state_dict()[name] for name in one.state_dict()})
    inputs = torch.randn(3, 6, SIZE, requires_grad=True)
    state = [torch.randn(3, SIZE, requires_grad=True) for _ in range(layer.cell.num_states)]
    theirs = tuple(part[None] for part in state)
    expected, last = one(inputs, theirs if cell_type == "lstm" else theirs[0])
    last = last if cell_type == "lstm" else (last,)
    found, after = layer(inputs, tuple(state))
    assert_close(found, expected, **close)
    ends = [found.square().sum() + sum(part.sum() for part in after)]
    ends.append(expected.square().sum() + sum(part.sum() for part in last))
    ours, theirs = (torch.autograd.grad(end, [inputs, *state]) for end in ends)
    assert_close(ours, theirs, **close)


@every_cell
def test_read_from_the_end_it_is_the_other_direction_of_torch(cell_type):
    lengths = torch.tensor(LENGTHS)
    both = THEIRS[cell_type](SIZE, SIZE, batch_first=True, bidirectional=True)
    stir(both)
    inputs = torch.randn(3, 12, SIZE)
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(both(packed)[0], batch_first=True)
    mask = torch.arange(12) < lengths[:, None]
    for half, suffix in zip(expected.split(SIZE, -1), ("", "_reverse"), strict=True):
        layer = RecurrentLayer(cell_type, SIZE, SIZE)
        layer.load_state_dict(layer_from_torch(both.state_dict(), 0, suffix))
        found, _ = layer(inputs, mask=mask, reverse=bool(suffix))
        assert_close(found[mask], half[mask], **close)


@every_cell
def test_dropout_is_on_what_layers_read_and_not_along_the_text(cell_type):
    """The same seed drops the same numbers, if the masks are drawn in the same places."""
    embedding, recurrent, head = make_torch(cell_type, dropout=0.4)
    model = rnn_from_torch(embedding, recurrent, head)
    assert model.training and model.config.hidden_dropout == 0.4
    ids, drop = text_batch()["input_ids"], nn.Dropout(0.4)
    torch.manual_seed(5)
    found = model(ids).logits
    layers = [THEIRS[cell_type](SIZE, SIZE, batch_first=True) for _ in range(LAYERS)]
    for i, layer in enumerate(layers):
        names = {name: name.replace("l0", f"l{i}") for name in layer.state_dict()}
        layer.load_state_dict({n: recurrent.state_dict()[theirs] for n, theirs in names.items()})
    torch.manual_seed(5)
    hidden = embedding(ids)
    for layer in layers:
        hidden = layer(drop(hidden))[0].contiguous()  # masks are drawn in the order of memory
    assert_close(found, head(drop(hidden)), **close)
    assert (found - model.eval()(ids).logits).abs().max() > 0.1


@every_cell
def test_weights_go_there_and_back(cell_type):
    parts = make_torch(cell_type, dropout=0.1)
    again = torch_from_rnn(rnn_from_torch(*parts).eval())
    for part, other in zip(parts, again, strict=True):
        assert type(part) is type(other) and not other.training
        state = other.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    assert again[1].dropout == 0.1


@pytest.mark.parametrize(
    ("recurrent", "message"),
    [
        (nn.RNN(8, 8, nonlinearity="relu"), "nonlinearity=relu.*only one with nonlinearity=tanh"),
        (nn.LSTM(8, 8, proj_size=4), "proj_size=4"),
        (nn.GRU(8, 8, bidirectional=True), "bidirectional=True"),
        (nn.GRU(8, 8, bias=False), "bias=False"),
        (nn.LSTM(5, 8), "input_size=5.*only one with input_size=8"),
        (nn.LSTMCell(8, 8), "LSTMCell is none of torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM"),
    ],
    ids=str,
)
def test_what_cannot_be_taken_over(recurrent, message):
    with pytest.raises(ValueError, match=message):
        rnn_from_torch(nn.Embedding(5, 8), recurrent, nn.Linear(8, 5, bias=False))


def test_an_output_layer_with_a_bias_cannot_be_taken_over():
    with pytest.raises(ValueError, match="has a bias"):
        rnn_from_torch(nn.Embedding(5, 8), nn.GRU(8, 8), nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("embedding", "head", "message"),
    [
        (nn.Embedding(5, 6), (8, 5), "the embedding has embedding_dim=6, .* embedding_dim=8"),
        (nn.Embedding(5, 8, padding_idx=0), (8, 5), "padding_idx=0, .* padding_idx=None"),
        (nn.Embedding(5, 8, max_norm=1.0), (8, 5), "max_norm=1.0"),
        (nn.Embedding(5, 8, scale_grad_by_freq=True), (8, 5), "scale_grad_by_freq=True"),
        (nn.Embedding(5, 8), (6, 5), "the output layer has in_features=6, .* in_features=8"),
        (nn.Embedding(5, 8), (8, 7), "out_features=7, .* out_features=5"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_parts_that_do_not_fit_cannot_be_taken_over(embedding, head, message):
    with pytest.raises(ValueError, match=message):
        rnn_from_torch(embedding, nn.GRU(8, 8), nn.Linear(*head, bias=False))


# ------------------------------------------------------------------------------------- the state


@every_cell
def test_reading_in_pieces_is_reading_at_once(cell_type):
    model, ids = make_rnn(cell_type), text_batch()["input_ids"]
    first = model(ids[:, :5])
    before = [[part.clone() for part in layer] for layer in first.past_key_values.layers]
    second = model(ids[:, 5:9], past_key_values=first.past_key_values)
    third = model(ids[:, 9:], past_key_values=second.past_key_values, logits_to_keep=1)
    assert [x.past_key_values.get_seq_length() for x in (first, second, third)] == [5, 9, 12]
    pieces = torch.cat((first.logits, second.logits, third.logits), dim=1)
    whole = model(ids).logits
    assert_close(pieces, torch.cat((whole[:, :9], whole[:, -1:]), dim=1), **close)
    for layer, old in zip(first.past_key_values.layers, before, strict=True):
        assert all(torch.equal(*pair) for pair in zip(layer, old, strict=True))


def test_gradients_flow_through_the_state_until_it_is_detached():
    model, ids = make_rnn(), text_batch()["input_ids"]
    embeds = model.model.embed_tokens(ids).detach().requires_grad_()
    state = model(inputs_embeds=embeds[:, :6]).past_key_values
    for one, flows in ((state, True), (state.detach(), False)):
        loss = model(ids[:, 6:], past_key_values=one, labels=ids[:, 6:]).loss
        (gradient,) = torch.autograd.grad(loss, embeds, allow_unused=True, retain_graph=True)
        assert (gradient is not None) is flows
    assert state.detach().get_seq_length() == 6


def test_the_state_is_given_where_it_is_wanted():
    model, ids = make_rnn(), text_batch()["input_ids"]
    assert model(ids).past_key_values.get_seq_length() == 12
    assert model(ids, use_cache=False).past_key_values is None
    assert model.train()(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is not None
    assert make_rnn(use_cache=False)(ids).past_key_values is None


def test_the_state_is_fp32_under_autocast_and_in_bf16():
    """In bf16, 1 + 1/512 is 1: what a state adds up would stand still."""
    model, ids = make_rnn("gru"), text_batch()["input_ids"]
    with torch.autocast("cpu", torch.bfloat16):
        states = [model(ids).past_key_values]
    states.append(model.bfloat16()(ids).past_key_values)
    for state in states:
        assert {part.dtype for layer in state.layers for part in layer} == {torch.float32}


WAYS_TO_GENERATE = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
}


def generate(model, batch, **options):
    """Twelve tokens a text, none of them again too soon, so that beams and rows change places."""
    torch.manual_seed(3)
    batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
    fixed = {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "pad_token_id": 0}
    return model.generate(**batch, **fixed | options)


@every_cell
@pytest.mark.parametrize("how", WAYS_TO_GENERATE)
def test_generation_with_the_state_and_without(cell_type, how):
    model, batch = make_rnn(cell_type), text_batch("left")
    found = generate(model, batch, **WAYS_TO_GENERATE[how])
    expected = generate(model, batch, use_cache=False, **WAYS_TO_GENERATE[how])
    assert torch.equal(found, expected)
    assert len(found[0, 12:].unique()) > 3


@every_cell
def test_a_left_padded_batch_is_continued_as_each_text_alone(cell_type):
    model, batch = make_rnn(cell_type), text_batch("left")
    options = {"no_repeat_ngram_size": 0}  # which would look at the padding too
    found = generate(model, batch, **options)
    for i, mask in enumerate(batch["attention_mask"]):
        text = batch["input_ids"][i : i + 1, mask.bool()]
        alone = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        assert torch.equal(generate(model, alone, **options)[0, -12:], found[i, -12:])


@every_cell
def test_generation_goes_on_from_a_state(cell_type):
    """Of the whole text only what is new is read; what is new will do as well."""
    model, batch = make_rnn(cell_type), text_batch(lengths=(12, 12, 12))
    options = {"no_repeat_ngram_size": 0}  # which would look at what was read before
    expected = generate(model, batch, **options)[:, -12:]
    for begin in (0, 8):
        state = model(batch["input_ids"][:, :8]).past_key_values
        given = batch | {"input_ids": batch["input_ids"][:, begin:]}
        found = generate(model, given, past_key_values=state, **options)
        assert torch.equal(found[:, -12:], expected)
        assert state.get_seq_length() == 8


# ------------------------------------------------------------------------- what else a model does


def test_shifted_labels_are_labels_one_further():
    model, ids = make_rnn(), text_batch()["input_ids"]
    expected = model(ids, labels=ids).loss
    following = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    assert_close(model(ids, shift_labels=following).loss, expected)
    with_last = model(ids[:, :-1], shift_labels=ids[:, 1:]).loss
    assert_close(with_last, expected)


def test_hidden_states_are_those_between_the_layers():
    model, ids = make_rnn(), text_batch()["input_ids"]
    states = model(ids, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(3, 12, SIZE)] * (LAYERS + 1)
    assert_close(states[0], model.model.embed_tokens(ids))
    assert_close(states[2], model.model.layers[1](states[1])[0])
    assert_close(model.lm_head(states[-1]), model(ids).logits)


@every_cell
def test_new_weights_are_drawn_as_in_torch_with_an_open_forget_gate(cell_type):
    torch.manual_seed(0)
    config = RNNConfig(vocab_size=256, hidden_size=256, num_hidden_layers=2, cell_type=cell_type)
    model = RNNModel(config)
    assert model.embed_tokens.weight.std().item() == pytest.approx(1, rel=0.02)
    for name, parameter in model.layers.named_parameters():
        if name.endswith("weight"):
            assert 0.99 / 16 < parameter.abs().max() <= 1 / 16, name
            assert parameter.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.02), name
        else:
            expected = torch.zeros_like(parameter)
            if cell_type == "lstm" and "input_proj" in name:
                expected[256:512] = 1
            assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lora_reaches_the_state(dtype):
    """Its products are made from the weights alone, so what PEFT adds must be among them."""
    near = close if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.3}
    model, ids = make_rnn("gru").to(dtype), text_batch()["input_ids"]
    before = model(ids).logits.detach()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["hidden_proj"]))
    assert_close(tuned(ids).logits, before, **near)  # it begins as no change
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0, 0.5)
    after = tuned(ids, labels=ids)
    assert (after.logits - before).abs().max() > near["atol"] + 0.1
    after.loss.backward()
    found = {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}
    assert found and all(gradient.abs().max() > 0 for gradient in found.values())
    assert_close(tuned.merge_and_unload()(ids).logits, after.logits, **near)


WRONG_CONFIGS = [
    ({"cell_type": "ltsm"}, "cell_type is 'ltsm'; it must be one of rnn, gru, lstm"),
    ({"hidden_size": 0}, "hidden_size is 0; it must be a whole number"),
    ({"hidden_size": 2.5}, "hidden_size is 2.5"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ({"vocab_size": None}, "vocab_size is None"),
    ({"hidden_dropout": 1.0}, r"hidden_dropout is 1.0; it must be in \[0, 1\)"),
    ({"initializer_range": 0.0}, "initializer_range is 0.0; it must be above 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_CONFIGS, ids=lambda case: str(case)[:30])
def test_a_wrong_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        RNNConfig(**options)


def test_forward_wants_one_input():
    model, ids = make_rnn(), text_batch()["input_ids"]
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(input_ids=ids, inputs_embeds=model.model.embed_tokens(ids))


def test_parameters_are_counted_before_they_are_made():
    for cell_type in CELLS:
        model = make_rnn(cell_type)
        assert model.config.num_parameters == model.num_parameters()


# ------------------------------------------------------------------------------------- the blocks


@pytest.mark.parametrize("num_streams", [1, 3, 7, 40])
@pytest.mark.parametrize("block_size", [1, 4, 50])
def test_every_token_but_the_first_is_scored_once(num_streams, block_size):
    ids = np.arange(100, 131, dtype=np.uint16)
    blocks = CarriedBlocks(ids, block_size, num_streams)
    seen, ends = [], [None] * num_streams
    for i in range(len(blocks)):
        block, stream = blocks[i], i % num_streams
        assert bool(block["begins"]) is (i < num_streams)
        real = block["shift_labels"] != -100
        tokens, following = (block[k][real].tolist() for k in ("input_ids", "shift_labels"))
        assert following == [token + 1 for token in tokens]
        if tokens and ends[stream]:
            assert tokens[0] == ends[stream]  # each goes on where the one before it ended
        ends[stream] = following[-1] if following else ends[stream]
        seen += following
    assert sorted(seen) == list(range(101, 131))


def take(stream, count: int) -> list[dict]:
    iterator = iter(stream)
    return [next(iterator) for _ in range(count)]


def test_a_stream_goes_on_where_it_was_and_each_pass_begins_elsewhere():
    ids = np.arange(100)
    stream = CarriedStream(ids, block_size=6, num_streams=4, seed=0)  # 4 blocks of each a pass
    blocks = take(stream, 3 * 16)
    for i, block in enumerate(blocks):
        assert (block["shift_labels"] == (block["input_ids"] + 1) % 100).all()
        assert bool(block["begins"]) is (i % 16 < 4)
        if i % 16 >= 4:
            assert block["input_ids"][0] == blocks[i - 4]["shift_labels"][-1]
    passes = [torch.cat([b["input_ids"] for b in blocks[i : i + 16]]) for i in (0, 16, 32)]
    assert all(len(part.unique()) == 96 for part in passes)
    assert len({int(part[0]) for part in passes}) == 3


def test_a_stream_resumes_and_is_shared_out():
    ids = np.arange(100)
    whole = take(CarriedStream(ids, 6, 4, seed=1), 40)
    stopped = CarriedStream(ids, 6, 4, seed=1)
    take(stopped, 21)
    place = json.loads(json.dumps(stopped.state_dict()))
    again = CarriedStream(ids, 6, 4, seed=1)
    again.load_state_dict(place)
    halves = [take(CarriedStream(ids, 6, 2, 1, process, 2), 20) for process in (0, 1)]
    for i, block in enumerate(take(again, 19)):
        assert torch.equal(block["input_ids"], whole[21 + i]["input_ids"])
    for i, block in enumerate(whole):
        batch, row = divmod(i, 4)
        shared = halves[row // 2][2 * batch + row % 2]
        assert all(torch.equal(block[name], shared[name]) for name in block)


# ------------------------------------------------------------------------------------------ a run

TINY = """
hidden_size: 16
num_hidden_layers: 2
cell_type: {cell_type}
hidden_dropout: 0.1
block_size: 12
max_steps: 6
per_device_train_batch_size: 8
per_device_eval_batch_size: 4
learning_rate: 5e-3
save_steps: 2
logging_steps: 1
disable_tqdm: true
seed: 0
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """`flags(folder, *more)`: the flags of a tiny run into this folder."""
    files = tmp_path_factory.mktemp("files")
    (files / "toy.txt").write_text(toy_text(150))

    def make(folder: Path, *more: str, cell_type: str = "lstm") -> list[str]:
        config = files / f"{cell_type}.yaml"
        config.write_text(TINY.format(cell_type=cell_type))
        text = ["--text", str(files / "toy.txt")]
        return ["--config", str(config), *text, "--output_dir", str(folder), *more]

    return make


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The folder of a whole run. Only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    rnn.main(flags(folder))
    return folder


def test_a_run_leaves_what_it_should(finished):
    files = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert {name for name in files if not name.startswith("checkpoint-")} == {
        *("model.safetensors", "config.json", "generation_config.json", "rnn.py", "recurrent.py"),
        *("tokenizer.json", "tokenizer_config.json", "README.md", "metrics.json", "settings.json"),
        *("figures/loss.png", "figures/gradients.png"),
    }
    run = json.loads((finished / "metrics.json").read_text())
    assert run["system"] == "rnn" and 1 < run["metrics"]["nats_per_character"] < 3.3
    card = (finished / "README.md").read_text()
    for text in (
        "2 layers of 16 cells (LSTM)",
        "figures/gradients.png",
        "new plain RNN",
        '"New" networks are untrained',
        "Samples",
    ):
        assert text in card


@every_cell
def test_a_stopped_run_ends_with_the_same_bits(flags, finished, tmp_path, cell_type):
    """Its state goes on too: the fifth update is in the middle of the text."""
    straight, stopped = finished, tmp_path / "stopped"
    if cell_type != "lstm":
        straight = tmp_path / "straight"
        rnn.main(flags(straight, cell_type=cell_type))
    with interrupted_at(5):
        rnn.main(flags(stopped, cell_type=cell_type))
    assert (stopped / "checkpoint-4" / "state_0.safetensors").is_file()
    rnn.main(flags(stopped, cell_type=cell_type))
    assert_same_bits(stopped, straight)


def test_the_state_is_carried_in_training(flags, finished, tmp_path, monkeypatch):
    """A run that forgets it after each block learns something else."""
    monkeypatch.setattr(rnn.RecurrentState, "detach", lambda self: None)
    monkeypatch.setattr(rnn.CarryTrainer, "_save_rng_state", recipe.RunTrainer._save_rng_state)
    rnn.main(flags(tmp_path))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, finished)]
    assert weights[0] != weights[1]


def test_one_stream_is_scored_as_the_text_read_at_once(flags, finished):
    """And more of them nearly so; how long the blocks are does not matter."""
    more = ["--evaluate_only", "--per_device_eval_batch_size"]
    one = rnn.main(flags(finished, *more, "1"))["metrics"]
    other = rnn.main(flags(finished, *more, "1", "--block_size", "50"))["metrics"]
    text = rnn.language.load_text(flags(finished)[3])["validation"]["text"]
    model = AutoModelForCausalLM.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    ids = torch.from_numpy(encode_documents(tokenizer, text).astype(np.int64))[None]
    expected = model(ids, labels=ids).loss.item()
    for metrics in (one, other):
        assert metrics["nats_per_character"] == pytest.approx(expected, rel=1e-5)
    four = json.loads((finished / "metrics.json").read_text())["metrics"]["nats_per_character"]
    assert four == pytest.approx(expected, rel=0.01) and four != expected


@every_cell
def test_gradient_norms_are_those_of_each_state_by_itself(cell_type):
    """Another way to them: the rest of the text is read at once from a state that is a leaf."""
    model, ids = make_rnn(cell_type), np.random.default_rng(0).integers(0, VOCABULARY, 40)
    norms = rnn.gradient_norms(model, ids)
    assert len(norms) == 38  # 39 tokens read, the fortieth to be said, from the second state on
    text = torch.from_numpy(ids)[None]
    for distance in (1, 5, 38):
        read = 39 - distance
        state = model(text[:, :read]).past_key_values.detach()
        leaves = [part.requires_grad_() for layer in state.layers for part in layer]
        logits = model(text[:, read:-1], past_key_values=state).logits[:, -1]
        found = torch.autograd.grad(nn.functional.cross_entropy(logits, text[:, -1]), leaves)
        assert norms[distance - 1] == pytest.approx(torch.cat(found, -1).norm().item(), rel=1e-4)


def test_gradients_that_have_faded_are_not_taken_for_zero():
    """The squares of what a new plain RNN still feels after a hundred steps are 0 in fp32."""
    torch.manual_seed(0)
    new = RNNForCausalLM(RNNConfig(vocab_size=VOCABULARY, hidden_size=SIZE, cell_type="rnn"))
    norms = rnn.gradient_norms(new, np.random.default_rng(0).integers(0, VOCABULARY, 300))
    assert len(norms) == rnn.GRADIENT_STEPS == 100
    assert all(norm > 0 for norm in norms) and norms[-1] < 1e-15
    assert new.dtype == torch.float32 and new.training  # it is left as it was


def test_a_run_on_a_text_too_short_for_gradients(flags, tmp_path):
    for tokens in (1, 2):
        assert rnn.gradient_norms(make_rnn(), np.zeros(tokens, dtype=np.uint16)) == []
    short = tmp_path / "short.txt"
    short.write_text("ab" * 5)  # one character to validate
    sizes = ["--per_device_train_batch_size", "1", "--block_size", "2"]
    rnn.main(flags(tmp_path / "run", "--text", str(short), *sizes))
    assert "gradients.png" not in (tmp_path / "run" / "README.md").read_text()
    assert not (tmp_path / "run" / "figures" / "gradients.png").exists()


def test_an_empty_data_set_is_refused(tmp_path):
    (tmp_path / "input.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"input\.txt has no text in it"):
        load_shakespeare(tmp_path)


def test_what_cannot_be_trained_on_is_one_line(flags, capsys, tmp_path):
    files = {"empty.txt": b"", "spaces.txt": b" \n ", "binary.txt": bytes(range(256)) * 9}
    files |= {"short.txt": b"abc " * 99}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    refused = {
        "empty.txt": ["empty.txt has no text in it"],
        "spaces.txt": ["spaces.txt has no text in it"],
        "binary.txt": ["binary.txt"],
        "missing.txt": ["missing.txt does not exist"],
        "short.txt": ["too few for 8 streams of at least one block of 64", "--block_size"],
    }
    for name, words in refused.items():
        more = ["--text", str(tmp_path / name), "--block_size", "64"]
        assert_refused(capsys, flags(tmp_path / "run", *more), *words, main=rnn.main)
    wrong = {
        ("--hidden_size", "1000000000"): ["parameters takes", "GiB", "--hidden_size"],
        ("--hidden_size", "-3"): ["hidden_size is -3"],
        ("--cell_type", "LSTM"): ["must be one of rnn, gru, lstm"],
        ("--block_size", "0"): ["block_size is 0; a block has at least 1 token"],
        ("--per_device_train_batch_size", "0"): ["per_device_train_batch_size is 0"],
        ("--max_steps", "0"): ["set --max_steps"],
        ("--dataset", "bible"): ["--dataset bible is unknown"],
        ("--prompt", "a\N{SNOWMAN} k\t"): ["--prompt has characters", "know: \N{SNOWMAN}; give"],
        ("--evaluate_only",): ["holds no model to score"],
    }
    for more, words in wrong.items():
        assert_refused(capsys, flags(tmp_path / "run", *more), *words, main=rnn.main)
    with pytest.raises(ValueError, match="the batch size is 0"):
        check_sizes(8, 0)
    assert not any(path for path in (tmp_path / "run").iterdir())
