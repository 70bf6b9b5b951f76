"""Seq2seq: attention against loops, GRUs against torch's, generation with the state and without."""

import json
import lzma
import math
import shutil

import pytest
import sacrebleu
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from groundup.data_scripts.multi30k import load_multi30k
from groundup.data_scripts.sources import DataNotFound
from groundup.models.seq2seq import ATTENTIONS, Seq2SeqConfig, Seq2SeqForConditionalGeneration
from groundup.train import seq2seq
from groundup.train.metrics import BLEU, BLEU_SIGNATURE

close = {"rtol": 1e-5, "atol": 1e-5}
every_attention = pytest.mark.parametrize("attention_type", list(ATTENTIONS))
SIZE, VOCABULARY = 8, 29


def make(attention_type: str = "additive", **options) -> Seq2SeqForConditionalGeneration:
    """A small model, all of whose numbers are random."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": SIZE, "num_hidden_layers": 2}
    config = Seq2SeqConfig(attention_type=attention_type, **(sizes | options))
    model = Seq2SeqForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


def batch(lengths=(6, 3, 5), target: int = 4) -> dict:
    """Sources of several lengths, padded on the right; targets of which one ends early."""
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)))
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(3, VOCABULARY, (len(lengths), target))
    labels[1, 2:] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


# -------------------------------------------------------------------------------------- attention


def score_by_loops(attention, hidden, encoded) -> torch.Tensor:
    """The equations of the model file, number by number."""
    scores = torch.zeros(len(hidden), hidden.shape[1], encoded.shape[1])
    for b in range(len(hidden)):
        for t, h in enumerate(hidden[b]):
            for s, e in enumerate(encoded[b]):
                match type(attention).__name__:
                    case "AdditiveAttention":
                        inner = attention.query_proj.weight @ h + attention.key_proj.weight @ e
                        inner = torch.tanh(inner + attention.key_proj.bias)
                        scores[b, t, s] = attention.score_proj.weight[0] @ inner
                    case "GeneralAttention":
                        scores[b, t, s] = h @ attention.key_proj.weight @ e
                    case "DotAttention":
                        scores[b, t, s] = h @ (e[:SIZE] + e[SIZE:]) / 2
    return scores


@pytest.mark.parametrize("attention_type", ["additive", "general", "dot"])
def test_attention_is_that_of_the_equations(attention_type):
    model, inputs = make(attention_type), batch()
    attention = model.model.decoder.attention
    hidden, encoded = torch.randn(3, 4, SIZE), torch.randn(3, 6, 2 * SIZE)
    expected = score_by_loops(attention, hidden, encoded)
    assert_close(attention(hidden, encoded), expected, **close)

    with torch.no_grad():
        outputs = model(**inputs)
    (weights,) = outputs.cross_attentions
    assert weights.shape == (3, 1, 4, 6)
    assert_close(weights.sum(-1), torch.ones(3, 1, 4), **close)
    assert (weights[1, :, :, 3:] == 0).all()  # padding is not looked at


# ------------------------------------------------------------------------------------------- GRUs


def torch_gru(layers, bidirectional: bool) -> nn.GRU:
    """PyTorch's GRU with the weights of our layers."""
    gru = nn.GRU(SIZE, SIZE, len(layers), batch_first=True, bidirectional=bidirectional)
    tensors = {}
    for i, layer in enumerate(layers):
        directions = {"": layer.onward, "_reverse": layer.back} if bidirectional else {"": layer}
        for suffix, one in directions.items():
            for ours, theirs in ((one.input_proj, "ih"), (one.hidden_proj, "hh")):
                tensors[f"weight_{theirs}_l{i}{suffix}"] = ours.weight
                tensors[f"bias_{theirs}_l{i}{suffix}"] = ours.bias
    gru.load_state_dict(tensors)
    return gru


def test_the_encoder_is_torchs_bidirectional_gru():
    model, inputs = make(), batch()
    gru, lengths = torch_gru(model.model.encoder.layers, True), inputs["attention_mask"].sum(1)
    packed = nn.utils.rnn.pack_padded_sequence(
        model.model.embed_tokens(inputs["input_ids"]),
        lengths,
        batch_first=True,
        enforce_sorted=False,
    )
    expected, ends = gru(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    outputs = model.model.encoder(inputs["input_ids"], inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    assert_close(outputs.last_hidden_state[real], expected[real], **close)
    starts = [  # ends: (layers * directions, batch, size)
        bridge(torch.cat((ends[2 * i], ends[2 * i + 1]), -1)).tanh()
        for i, bridge in enumerate(model.model.encoder.bridges)
    ]
    assert_close(outputs.pooler_output, torch.cat(starts, -1), **close)


@every_attention
def test_outputs_and_gradients_are_those_of_the_same_on_torchs_gru(attention_type):
    """The whole model, with PyTorch's GRUs and functions in place of ours."""
    model, inputs = make(attention_type), batch((6, 6, 6))
    model(**inputs).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    encoder, decoder = model.model.encoder, model.model.decoder
    reading, writing = torch_gru(encoder.layers, True), torch_gru(decoder.layers, False)
    encoded, ends = reading(model.model.embed_tokens(inputs["input_ids"]))
    starts = [
        bridge(torch.cat((ends[2 * i], ends[2 * i + 1]), -1)).tanh()
        for i, bridge in enumerate(encoder.bridges)
    ]
    before = model.model.embed_tokens(model.prepare_decoder_input_ids_from_labels(inputs["labels"]))
    hidden, _ = writing(before, torch.stack(starts))
    seen = hidden
    if decoder.attention is not None:
        weights = decoder.attention(hidden, encoded).softmax(-1)
        seen = torch.cat((torch.einsum("bts,bsd->btd", weights, encoded), hidden), -1)
    logits = model.lm_head(decoder.output_proj(seen).tanh())
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    loss.backward()
    assert_close(model(**inputs).logits, logits, **close)
    for name, p in model.named_parameters():
        if p.grad is not None:  # all that is not in PyTorch's copies of the GRUs
            assert_close(
                found[name], p.grad, **close, msg=lambda text, name=name: f"{name}: {text}"
            )
    for gru, layers in ((reading, encoder.layers), (writing, decoder.layers)):
        first = layers[0].onward if gru.bidirectional else layers[0]
        name = next(n for n, p in model.named_parameters() if p is first.input_proj.weight)
        assert_close(found[name], gru.weight_ih_l0.grad, **close)


# ------------------------------------------------------------------------------------- generation


@every_attention
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_with_the_state_and_without(attention_type, options):
    model, inputs = make(attention_type), batch()
    del inputs["labels"]
    with_state, without = (
        model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use, **options)
        for use in (True, False)
    )
    assert torch.equal(with_state, without) and with_state.shape[0] == 3
    for i, length in enumerate((6, 3, 5)):  # each as alone
        alone = model.generate(
            inputs["input_ids"][i : i + 1, :length], max_new_tokens=8, do_sample=False, **options
        )[0]
        assert torch.equal(with_state[i, : len(alone)], alone)


def test_greedy_generation_is_the_best_token_each_time():
    model, inputs = make(), batch()
    written = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
    )
    logits = model(
        inputs["input_ids"], inputs["attention_mask"], decoder_input_ids=written[:, :-1]
    ).logits
    logits[..., model.config.eos_token_id] = -math.inf
    assert torch.equal(logits.argmax(-1), written[:, 1:])


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_type": "cosine"}, "must be one of additive, general, dot, none"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_dropout": 1.0}, r"must be in \[0, 1\)"),
        ({"initializer_range": 0.0}, "must be above 0"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id is None; it must be a token"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**options)


def test_wrong_inputs_are_refused():
    model, inputs = make(), batch()
    with pytest.raises(ValueError, match="either input_ids or encoder_outputs"):
        model(labels=inputs["labels"])
    with pytest.raises(ValueError, match="give decoder_input_ids"):
        model(inputs["input_ids"])


# --------------------------------------------------------------------------------------- Multi30k


def write_multi30k(folder, **changed: str):
    """Some sentences, as they lie in the folder of the data set."""
    for file in ("train", "val", "test_2016_flickr"):
        for language, text in (("de", "Ein Hund.\nZwei Männer. "), ("en", "A dog.\nTwo men.")):
            content = changed.get(f"{file}_{language}", text)
            (folder / f"{file}.{language}.xz").write_bytes(lzma.compress(content.encode()))


def test_multi30k_is_pairs_of_sentences(tmp_path):
    write_multi30k(tmp_path)
    dataset = load_multi30k(data_dir=tmp_path)
    assert dataset["test"][1] == {"source": "Zwei Männer.", "target": "Two men."}
    assert {split: len(rows) for split, rows in dataset.items()} == {
        **{"train": 2, "validation": 2, "test": 2}
    }
    assert load_multi30k("en", "de", tmp_path)["train"]["source"] == ["A dog.", "Two men."]
    assert dataset["train"].info.dataset_name == "multi30k-de-en"


def test_multi30k_that_does_not_match_is_said(tmp_path, monkeypatch):
    write_multi30k(tmp_path, val_en="A dog.")
    with pytest.raises(ValueError, match="validation has 2 lines of de and 1 of en"):
        load_multi30k(data_dir=tmp_path)
    with pytest.raises(ValueError, match="no language 'it'"):
        load_multi30k("it", "en", tmp_path)
    with pytest.raises(ValueError, match="are both 'de'"):
        load_multi30k("de", "de", tmp_path)
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataNotFound, match="connect to the Hub"):
        load_multi30k()
    with pytest.raises(DataNotFound) as error:
        load_multi30k("fr", "en")
    assert "Hub" not in str(error.value)


# ------------------------------------------------------------------------------------------ a run

WORDS = [("Hund", "dog"), ("Mann", "man"), ("Frau", "woman"), ("Ball", "ball"), ("Haus", "house")]
TINY = """
tokenizer_vocab_size: 300
hidden_size: 64
num_beams: 2
max_new_tokens: 24
max_steps: 240
per_device_train_batch_size: 25
learning_rate: 5e-3
save_steps: 120
logging_steps: 25
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """`flags(folder, *more)`: the flags of a tiny run into this folder: two nouns a sentence."""
    files = tmp_path_factory.mktemp("files")
    pairs = [(f"Ein {a} und ein {b}.", f"A {x} and a {y}.") for a, x in WORDS for b, y in WORDS]
    both = ["\n".join(lines) for lines in zip(*pairs, strict=True)]
    changed = {
        f"{file}_{language}": text
        for file in ("train", "val", "test_2016_flickr")
        for language, text in zip(("de", "en"), both, strict=True)
    }
    write_multi30k(files, **changed)
    (files / "tiny.yaml").write_text(TINY)

    def make(folder, *more: str) -> list[str]:
        flags = ["--config", str(files / "tiny.yaml"), "--data_dir", str(files)]
        return [*flags, "--output_dir", str(folder), *more]

    return make


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The folder of a whole run. Only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    seq2seq.main(flags(folder))
    return folder


def test_a_run_learns_to_translate_and_leaves_what_it_should(finished):
    files = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert {name for name in files if not name.startswith("checkpoint-")} == {
        *("model.safetensors", "config.json", "generation_config.json", "seq2seq.py"),
        *("recurrent.py", "seq2seq_common.py", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "metrics.json", "settings.json"),
        *("figures/loss.png", "figures/attention.png"),
    }
    run = json.loads((finished / "metrics.json").read_text())
    assert run["metrics"]["bleu"] > 60
    card = (finished / "README.md").read_text()
    assert "| Ein Hund und ein Hund. | A dog and a dog. |" in card and BLEU_SIGNATURE in card


def test_a_stopped_run_ends_with_the_same_bits_and_the_same_score(flags, finished, tmp_path):
    folder = tmp_path / "run"
    seq2seq.main(flags(folder))
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint-240")
    run = seq2seq.main(flags(folder))
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, finished))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    again = seq2seq.main(flags(finished, "--evaluate_only"))
    assert again["metrics"] == run["metrics"]


def test_bleu_is_sacrebleus():
    written, right = ["A dog runs in the park .", "two men"], ["A dog runs in a park.", "Two men."]
    found = BLEU().compute(predictions=written, references=right)["bleu"]
    metric = sacrebleu.metrics.BLEU()
    assert found == pytest.approx(metric.corpus_score(written, [right]).score)
    assert str(metric.get_signature()) == BLEU_SIGNATURE


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--split", "train"], "--split train is unknown"),
        (["--num_beams", "0"], "--num_beams is 0"),
        (["--source_language", "it"], "no language 'it'"),
        (["--source_language", "fr"], "train.fr.xz"),
        (["--attention_type", "cosine"], "must be one of additive"),
    ],
)
def test_a_mistake_is_one_line(flags, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        seq2seq.main(flags(tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
