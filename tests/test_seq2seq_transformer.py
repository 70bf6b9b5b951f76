"""The Transformer for seq2seq against transformers' Pegasus: outputs, gradients, generation; what
looks where; padding; what it refuses."""

import copy

import pytest
import torch
from contract import gradients
from torch.testing import assert_close
from transformers import PegasusConfig, PegasusForConditionalGeneration

from groundup.models.from_pegasus import (
    pegasus_from_seq2seq,
    seq2seq_from_pegasus,
    tensors_from_pegasus,
)
from groundup.models.seq2seq_transformer import (
    Seq2SeqTransformerConfig,
    Seq2SeqTransformerForConditionalGeneration,
)

# Random weights say the same token again and again: each may be said once.
WRITING = {"max_new_tokens": 10, "do_sample": False, "no_repeat_ngram_size": 1}
both_ways = pytest.mark.parametrize(
    "options", [WRITING, WRITING | {"num_beams": 3}], ids=["greedy", "beams"]
)
close = {"rtol": 1e-5, "atol": 1e-5}
VOCABULARY, LENGTHS = 61, (6, 3, 5)
SIZE = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "scale_embedding": True,
    "max_position_embeddings": 32,
    "activation_function": "relu",
    # Dropout is off, so that training compares too.
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
for _stack in ("encoder", "decoder"):
    SIZE |= {f"{_stack}_layers": 2, f"{_stack}_attention_heads": 3, f"{_stack}_ffn_dim": 40}


def make_reference(**options) -> PegasusForConditionalGeneration:
    """A small Pegasus, all of whose weights are random; its waves are as they are."""
    torch.manual_seed(0)
    reference = PegasusForConditionalGeneration(PegasusConfig(**(SIZE | options)))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "embed_positions" not in name:
                parameter.normal_(0, 0.3)
            if name.endswith("norm.weight"):
                parameter += 1
    return reference.eval()


def make(**options) -> Seq2SeqTransformerForConditionalGeneration:
    """A small model of ours, all of whose weights are random."""
    return seq2seq_from_pegasus(make_reference(**options))


def batch(side: str = "right") -> dict:
    """Sources of several lengths, padded on a side; targets of which one ends early."""
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.randint(3, VOCABULARY, (len(LENGTHS), 4))
    labels[1, 2:] = -100
    if side == "left":  # the same sources, each moved to the right
        ids = torch.stack([row.roll(-length) for row, length in zip(ids, LENGTHS, strict=True)])
        mask = mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def sources(side: str = "right") -> dict:
    """The batch without its targets."""
    return {key: value for key, value in batch(side).items() if key != "labels"}


# ----------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"activation_function": "gelu", "d_model": 27}])
def test_outputs_and_gradients_are_those_of_pegasus(attention, options):
    reference = make_reference(**options)
    model, inputs = seq2seq_from_pegasus(reference), batch()
    assert not model.training
    for one in (reference, model):
        one.set_attn_implementation(attention)
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True)
        found = model(**inputs, output_hidden_states=True)
    assert_close(found.loss, expected.loss, **close)
    assert_close(found.logits, expected.logits, **close)
    assert len(found.decoder_hidden_states) == 3
    order = [  # of Pegasus's stream: all sines, then all cosines
        *range(0, model.config.hidden_size, 2),
        *range(1, model.config.hidden_size, 2),
    ]
    real = inputs["attention_mask"].bool()
    for ours, theirs in zip(
        found.encoder_hidden_states + found.decoder_hidden_states,
        expected.encoder_hidden_states + expected.decoder_hidden_states,
        strict=True,
    ):
        shown = real if ours.shape[1] == real.shape[1] else slice(None)
        assert_close(ours[..., order][shown], theirs[shown], **close)

    theirs = tensors_from_pegasus(gradients(reference.train(), inputs))
    ours = gradients(model.train(), inputs)
    assert theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        assert gradient.any() or "k_proj.bias" in name
        assert_close(gradient, theirs[name], **close, msg=lambda text, name=name: f"{name}: {text}")


@both_ways
def test_it_writes_what_pegasus_writes_with_a_cache_and_without(options):
    reference = make_reference()
    model, inputs = seq2seq_from_pegasus(reference), sources()
    expected = reference.generate(**inputs, **options)
    assert len(expected.unique()) > 6
    for use_cache in (True, False):
        assert torch.equal(model.generate(**inputs, use_cache=use_cache, **options), expected)


def test_attention_weights_are_those_of_pegasus():
    reference = make_reference()
    model, inputs = seq2seq_from_pegasus(reference), batch()
    for one in (reference, model):
        one.set_attn_implementation("eager")
    with torch.no_grad():
        expected = reference(**inputs, output_attentions=True)
        found = model(**inputs, output_attentions=True)
    assert [weights.shape for weights in found.cross_attentions] == [(3, 3, 4, 6)] * 2
    for ours, theirs in (
        *zip(found.cross_attentions, expected.cross_attentions, strict=True),
        *zip(found.decoder_attentions, expected.decoder_attentions, strict=True),
    ):
        assert_close(ours, theirs, **close)
    real = inputs["attention_mask"].bool()
    for ours, theirs in zip(found.encoder_attentions, expected.encoder_attentions, strict=True):
        assert_close(ours.transpose(1, 2)[real], theirs.transpose(1, 2)[real], **close)
    assert (found.cross_attentions[0][1, :, :, 3:] == 0).all()  # padding is not looked at


def test_there_and_back(tmp_path):
    reference = make_reference()
    reference.save_pretrained(tmp_path)
    again = pegasus_from_seq2seq(seq2seq_from_pegasus(tmp_path), max_position_embeddings=32)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.generation_config.to_dict() == reference.generation_config.to_dict()


def test_what_cannot_be_taken_over_is_refused():
    for option, words in (
        ({"scale_embedding": False}, "scale_embedding=False"),
        ({"decoder_layers": 1}, "decoder_layers=1, .* only a Pegasus with decoder_layers=2"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**option)
    reference = make_reference()
    reference.final_logits_bias += 1
    with pytest.raises(ValueError, match="adds a bias to its scores"):
        seq2seq_from_pegasus(reference)
    config = Seq2SeqTransformerConfig(vocab_size=9, hidden_size=8, layer_norm_eps=1e-6)
    with pytest.raises(ValueError, match="layer_norm_eps=1e-06 cannot be exported"):
        pegasus_from_seq2seq(Seq2SeqTransformerForConditionalGeneration(config))


# ------------------------------------------------------------------------------- who looks where


def test_the_encoder_looks_to_both_sides_and_the_decoder_does_not_look_ahead():
    model, inputs = make(), batch()
    other = copy.deepcopy(inputs)
    other["input_ids"][0, 0] += 1
    other["input_ids"][2, 4] -= 1  # the last of its source
    with torch.no_grad():
        ids = inputs["input_ids"], other["input_ids"]
        before, after = (model.model.encoder(x, inputs["attention_mask"])[0] for x in ids)
        changed = (before != after).any(-1)
        assert changed[0].all() and not changed[1].any() and changed[2, :5].all()

        targets = torch.randint(3, VOCABULARY, (3, 5))
        others = targets.clone()
        others[:, 3] = (others[:, 3] + 1) % VOCABULARY
        before, after = (model(**sources(), decoder_input_ids=x).logits for x in (targets, others))
        changed = (before != after).any(-1)
        assert not changed[:, :3].any() and changed[:, 3:].all()


@pytest.mark.parametrize("side", ["right", "left"])
@both_ways
def test_each_source_of_a_padded_batch_is_written_of_as_alone(side, options):
    model, inputs = make(), sources(side)
    together = model.generate(**inputs, **options)
    for ids, mask, written in zip(*inputs.values(), together, strict=True):
        source = ids[mask.bool()][None]
        alone = model.generate(source, **options)[0]
        assert torch.equal(written[: len(alone)], alone)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_the_target_changes_nothing(attention, side):
    model, inputs = make(), sources()
    model.set_attn_implementation(attention)
    targets = torch.randint(3, VOCABULARY, (3, 5))
    mask = torch.ones_like(targets)
    mask[1, slice(3, None) if side == "right" else slice(2)] = 0
    with torch.no_grad():
        found = model(**inputs, decoder_input_ids=targets, decoder_attention_mask=mask).logits
        for i in range(3):
            one = {key: value[i : i + 1] for key, value in inputs.items()}
            real = mask[i].bool()
            alone = model(**one, decoder_input_ids=targets[i][real][None]).logits[0]
            assert_close(found[i][real], alone, **close)


def test_keys_and_values_of_the_source_are_made_once():
    model, made = make(), []
    layer = model.model.decoder.layers[1]
    layer.cross_attention.k_proj.register_forward_hook(lambda *_: made.append("source"))
    layer.attention.k_proj.register_forward_hook(lambda *_: made.append("target"))
    model.generate(**sources(), min_new_tokens=10, **WRITING)
    assert made.count("source") == 1 and made.count("target") == 10


def test_a_text_may_be_longer_than_any_before():
    long = torch.randint(3, VOCABULARY, (1, 600))
    assert make()(long, labels=long).loss.isfinite()


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_attention_heads": 5}, "nearest number of heads that fits is 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_act": "step"}, "'step' is unknown"),
        ({"hidden_dropout": 1.0}, r"must be in \[0, 1\)"),
        ({"pad_token_id": None}, "pad_token_id is None; it must be a token, from 0 to 255"),
        ({"decoder_start_token_id": 256}, "decoder_start_token_id is 256; it must be a token"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Seq2SeqTransformerConfig(**options)
    assert "\n" not in str(error.value)


def test_wrong_inputs_are_refused():
    model, inputs = make(), batch()
    with pytest.raises(ValueError, match="either input_ids or encoder_outputs"):
        model(labels=inputs["labels"])
    with pytest.raises(ValueError, match="give decoder_input_ids"):
        model(inputs["input_ids"])
    with pytest.raises(ValueError, match=r'call model.set_attn_implementation\("eager"\)'):
        model(**inputs, output_attentions=True)
    inputs["attention_mask"][1] = 0
    for empty in (inputs, {"input_ids": inputs["input_ids"][:, :0], "labels": inputs["labels"]}):
        with pytest.raises(ValueError, match=r"a text is empty .* leave it out"):
            model(**empty)


def test_the_token_that_starts_and_ends_is_learned_though_it_is_padding_too():
    ids = dict.fromkeys(("pad_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = make().config.to_dict() | ids | {"tie_word_embeddings": False}
    model = Seq2SeqTransformerForConditionalGeneration(Seq2SeqTransformerConfig.from_dict(config))
    source = torch.tensor([[5, 9, 0]])
    model(input_ids=source, labels=torch.tensor([[7, 8, 0]])).loss.backward()
    assert model.model.embed_tokens.weight.grad[0].abs().sum() > 0
