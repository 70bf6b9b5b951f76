"""GPT against independent oracles: GPT-2 as a whole, and each kind of positions by itself."""

import numpy as np
import pytest
import torch
from contract import gradients
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from groundup.models.from_gpt2 import (
    config_from_gpt2,
    gpt2_from_gpt,
    gpt_from_gpt2,
    tensors_from_gpt2,
)
from groundup.models.gpt import GPTConfig, GPTForCausalLM, GPTModel
from groundup.models.transformer import alibi_mask, alibi_slopes, sinusoidal_positions

SIZE = {"vocab_size": 67, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}
VARIANTS = {
    "gpt2": {},
    "another": {
        "n_inner": 80,
        "activation_function": "relu",
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-3,
    },
}
LEARNED_AND_OTHERS = ["learned", "sinusoidal", "rotary", "alibi"]
close = {"rtol": 1e-5, "atol": 1e-5}


def stir(model):
    """Random numbers in every parameter: fresh biases (0) and norms (1) would hide a mix-up."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.1)
            if "norm" in name or "ln_" in name:
                parameter += name.endswith("weight")
    return model


def make_gpt2(**options) -> GPT2LMHeadModel:
    """A small GPT-2, ready to compare."""
    options = SIZE | {"bos_token_id": None, "eos_token_id": None} | options
    return stir(GPT2LMHeadModel(GPT2Config(**options))).eval()


def make_gpt(position_embedding_type="learned", **options) -> GPTForCausalLM:
    shape = {"vocab_size": 67, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    options = shape | {"max_position_embeddings": 32} | options
    config = GPTConfig(position_embedding_type=position_embedding_type, **options)
    return stir(GPTForCausalLM(config)).eval()


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    """A GPT-2, and the GPT that should be the same."""
    reference = make_gpt2(**VARIANTS[request.param])
    return reference, gpt_from_gpt2(reference)


def text_batch(padding: str = "none", lengths=(9, 12, 4)) -> dict:
    """Texts of several lengths, with labels, and positions that count from each text's start."""
    torch.manual_seed(1)
    ids = torch.randint(67, (len(lengths), max(lengths)))
    mask = torch.ones_like(ids)
    for i, length in enumerate(lengths):
        if padding == "right":
            mask[i, length:] = 0
        elif padding == "left":
            mask[i, :-length] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        "labels": ids.masked_fill(mask == 0, -100),
    }


# ------------------------------------------------------------------------------ the same as GPT-2


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outputs_and_gradients_are_those_of_gpt2(pair, attention, padding):
    batch = text_batch(padding)
    real = batch["attention_mask"].bool()
    for model in pair:
        model.set_attn_implementation(attention)
    reference, model = pair
    with torch.no_grad():
        expected = reference(**batch, output_hidden_states=True)
        found = model(**batch, output_hidden_states=True)
    assert_close(found.loss, expected.loss, **close)
    assert_close(found.logits[real], expected.logits[real], **close)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(ours[real], theirs[real], **close)

    theirs, ours = tensors_from_gpt2(gradients(reference, batch)), gradients(model, batch)
    assert theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], **close, msg=lambda text, name=name: f"{name}: {text}")


def test_attention_weights_are_those_of_gpt2(pair):
    batch = text_batch()
    for model in pair:
        model.set_attn_implementation("eager")
    expected, found = (model(**batch, output_attentions=True).attentions for model in pair)
    assert len(found) == 3
    assert_close(found, expected, **close)


def test_dropout_stands_where_gpt2_has_it():
    """The same seed drops the same numbers, if the masks are drawn in the same order."""
    reference = make_gpt2(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.3).train()
    model = gpt_from_gpt2(reference)
    assert model.training
    outputs = []
    for one in (reference, model):
        one.set_attn_implementation("eager")
        torch.manual_seed(5)
        outputs.append(one(**text_batch()).logits)
    assert_close(outputs[1], outputs[0], **close)
    assert (outputs[1] - model.eval()(**text_batch()).logits).abs().max() > 0.1


def test_positions_are_counted_from_the_mask():
    """What GPT-2 must be told by `position_ids`, GPT sees in the attention mask."""
    model = make_gpt()
    batch = text_batch("left")
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    del batch["position_ids"]
    assert_close(model(**batch).logits[real], expected, **close)


WAYS_TO_GENERATE = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "uncached": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}


def generate(model, batch, **options):
    """Twelve tokens a text. No pair of tokens twice, or random weights say one token for ever."""
    torch.manual_seed(3)
    batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
    fixed = {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "pad_token_id": 0}
    return model.generate(**batch, **fixed, **options)


@pytest.mark.parametrize("how", WAYS_TO_GENERATE)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_generates_what_gpt2_generates(pair, how, padding):
    expected, found = (
        generate(model, text_batch(padding), **WAYS_TO_GENERATE[how]) for model in pair
    )
    assert torch.equal(found, expected)
    assert len(found[0, 12:].unique()) > 3


def test_gpt2_goes_there_and_back(pair):
    reference, model = pair
    again = gpt2_from_gpt(model)
    state = again.state_dict()
    assert state.keys() == reference.state_dict().keys()
    assert all(torch.equal(t, state[name]) for name, t in reference.state_dict().items())
    ours, theirs = again.config.to_dict(), reference.config.to_dict()
    # n_inner is written out; the rest is the same
    theirs["n_inner"] = theirs["n_inner"] or 4 * 48
    assert ours | {"dtype": None} == theirs | {"dtype": None}
    assert not again.training


def test_our_gpt_goes_out_and_comes_back(tmp_path):
    """From a folder, in bf16, and with the generation settings."""
    model = make_gpt(bos_token_id=1, eos_token_id=2, hidden_dropout=0.1).bfloat16()
    model.generation_config.max_length = 17
    gpt2_from_gpt(model).save_pretrained(tmp_path)
    again = gpt_from_gpt2(str(tmp_path))
    assert again.dtype == torch.bfloat16 and again.generation_config.max_length == 17
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    unlike = {"_name_or_path", "dtype", "architectures"}
    ours, theirs = (one.config.to_dict() for one in (model, again))
    assert {k: v for k, v in ours.items() if k not in unlike} == {
        k: v for k, v in theirs.items() if k not in unlike
    }


@pytest.mark.parametrize(
    "option",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"add_cross_attention": True},
        {"embd_pdrop": 0.3},
    ],
    ids=lambda option: next(iter(option)),
)
def test_gpt2_options_that_gpt_does_not_have(option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        config_from_gpt2(GPT2Config(**SIZE, **option))


@pytest.mark.parametrize("kind", ["sinusoidal", "rotary", "alibi"])
def test_positions_that_gpt2_does_not_have(kind):
    with pytest.raises(ValueError, match=f"learned positions only.*{kind}"):
        gpt2_from_gpt(make_gpt(kind))


# --------------------------------------------------------------------------- every kind of position


@pytest.mark.parametrize("kind", LEARNED_AND_OTHERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation_with_and_without_cache(kind, attention):
    """A left-padded batch, through each cache, gives the tokens of each text alone, uncached."""
    model = make_gpt(kind)
    model.set_attn_implementation(attention)
    batch = text_batch("left")
    ways = [
        generate(model, batch, **WAYS_TO_GENERATE[how])
        for how in ("greedy", "uncached", "static cache")
    ]
    for i, mask in enumerate(batch["attention_mask"]):
        text = batch["input_ids"][i : i + 1, mask.bool()]
        alone = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        expected = generate(model, alone, use_cache=False)[0, -12:]
        assert all(torch.equal(way[i, -12:], expected) for way in ways)


@pytest.mark.parametrize("kind", LEARNED_AND_OTHERS)
def test_reading_in_pieces_gives_the_logits_of_reading_at_once(kind):
    model, ids = make_gpt(kind), text_batch()["input_ids"]
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:9], past_key_values=first.past_key_values)
    third = model(ids[:, 9:], past_key_values=second.past_key_values, logits_to_keep=1)
    assert third.logits.shape[1] == 1
    pieces = torch.cat((first.logits, second.logits, third.logits), dim=1)
    whole = model(ids).logits
    assert_close(pieces, torch.cat((whole[:, :9], whole[:, -1:]), dim=1), **close)


@pytest.mark.parametrize("kind", LEARNED_AND_OTHERS)
def test_order_matters_and_the_future_does_not(kind):
    model, ids = make_gpt(kind), text_batch()["input_ids"]
    logits = model(ids).logits
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 67
    assert_close(model(changed).logits[:, :8], logits[:, :8], **close)
    swapped = ids[:, [1, 0, *range(2, 12)]]
    assert (model(swapped).logits[:, -1] - logits[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["rotary", "alibi"])
def test_relative_positions_do_not_care_where_a_text_starts(kind):
    model, batch = make_gpt(kind), text_batch()
    logits = model(**batch).logits
    batch["position_ids"] = batch["position_ids"] + 100
    assert_close(model(**batch).logits, logits, **close)


def first_attention(model, ids):
    """(query, key) of layer 0, before positions: (batch, heads, time, head_dim) each; the oracles
    go on from here by themselves. And the weights that the model computed."""
    model.set_attn_implementation("eager")
    outputs = model(ids, output_attentions=True, output_hidden_states=True)
    layer = model.model.layers[0]
    normed = layer.attention_norm(outputs.hidden_states[0])
    heads = (*ids.shape, model.config.num_attention_heads, -1)
    query, key = (
        proj(normed).view(heads).transpose(1, 2)
        for proj in (layer.attention.q_proj, layer.attention.k_proj)
    )
    return query, key, outputs.attentions[0]


def causal(length):
    return torch.full((length, length), -torch.inf).triu(1)


def test_rotary_is_llamas():
    model, ids = make_gpt("rotary"), text_batch()["input_ids"]
    query, key, weights = first_attention(model, ids)
    embedding = LlamaRotaryEmbedding(LlamaConfig(hidden_size=48, num_attention_heads=3))
    query, key = apply_rotary_pos_emb(query, key, *embedding(query, torch.arange(12)[None]))
    scores = query @ key.transpose(-1, -2) / 16**0.5
    assert_close(weights, (scores + causal(12)).softmax(-1), **close)


def test_alibi_is_blooms():
    model, ids = make_gpt("alibi"), text_batch()["input_ids"]  # 3 heads: not a power of two
    query, key, weights = first_attention(model, ids)
    bias = build_alibi_tensor(torch.ones_like(ids), 3, torch.float32).view(3, 3, 1, 12)
    scores = query @ key.transpose(-1, -2) / 16**0.5 + bias
    assert_close(weights, (scores + causal(12)).softmax(-1), **close)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20])
def test_alibi_slopes_are_blooms(heads):
    ramp = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # slope * position
    assert_close(alibi_slopes(heads), ramp[:, 0, 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alibi_mask_takes_both_kinds_of_mask(dtype):
    """Boolean, as sdpa wants it, or additive, as eager does; what sees nothing stays finite."""
    allowed = torch.ones(4, 6).tril(2).bool()
    allowed[0] = False
    additive = torch.zeros(4, 6, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    one = alibi_mask(allowed[None, None], 2, 2, dtype)
    other = alibi_mask(additive[None, None], 2, 2, dtype)
    assert one.shape == (1, 2, 4, 6) and one.dtype == other.dtype == dtype
    assert one.isfinite().all() and torch.equal(one, other)
    assert one[0, 0, 3, 5] == 0 and one[0, 0, 3, 3] == -2 * 2**-4  # two steps back, first slope
    assert one[0, 1, 1, 4] == torch.finfo(dtype).min


@pytest.mark.parametrize("dim", [8, 7])
def test_sinusoidal_is_the_papers(dim):
    expected = np.zeros((2, 3, dim))
    positions = torch.tensor([[0, 1, 2], [7, 300, 5]])
    for at in np.ndindex(2, 3):
        for column in range(dim):
            angle = int(positions[at]) / 10000 ** (2 * (column // 2) / dim)
            expected[at][column] = np.cos(angle) if column % 2 else np.sin(angle)
    found = sinusoidal_positions(positions, dim)
    assert_close(found.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-4)
    assert_close(found[0].double(), torch.from_numpy(expected[0]), rtol=1e-6, atol=1e-6)


def test_sinusoidal_waves_are_added_to_scaled_embeddings():
    model, ids = make_gpt("sinusoidal"), text_batch()["input_ids"]
    stream = model(ids, output_hidden_states=True).hidden_states[0]
    expected = model.model.embed_tokens(ids) * 48**0.5 + sinusoidal_positions(torch.arange(12), 48)
    assert_close(stream, expected, **close)


# ---------------------------------------------------------------------------- what it says and not


WRONG_CONFIGS = [
    ({"hidden_size": 48, "num_attention_heads": 5}, "nearest number of heads that fits is [46]"),
    ({"position_embedding_type": "relative"}, "'relative'.*learned, sinusoidal, rotary, alibi"),
    (
        {"hidden_size": 9, "num_attention_heads": 3, "position_embedding_type": "rotary"},
        "= 3.*even",
    ),
    ({"hidden_act": "gleu"}, "hidden_act 'gleu' is unknown"),
    ({"hidden_dropout": 1.0}, r"hidden_dropout is 1.0; it must be in \[0, 1\)"),
    ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
    ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": "256"}, "hidden_size is '256'"),
    ({"hidden_size": None}, "hidden_size is None"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
    ({"num_attention_heads": -1}, "num_attention_heads is -1"),
    ({"intermediate_size": 0}, "intermediate_size is 0"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_CONFIGS, ids=lambda case: str(case)[:40])
def test_a_wrong_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message) as error:
        GPTConfig(**options)
    assert "\n" not in str(error.value)


def test_forward_wants_one_input():
    model, ids = make_gpt(), text_batch()["input_ids"]
    embeds = model.model.embed_tokens(ids)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(input_ids=ids, inputs_embeds=embeds)
    assert_close(model(inputs_embeds=embeds).logits, model(ids).logits, **close)


def test_learned_positions_end_somewhere():
    model = make_gpt()
    message = "33 tokens, but the model has learned only 32 positions"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 33, dtype=torch.long))
    cache = model(torch.zeros(1, 32, dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)


@pytest.mark.parametrize("kind", ["sinusoidal", "rotary", "alibi"])
def test_other_positions_do_not_end(kind):
    assert make_gpt(kind)(torch.zeros(1, 40, dtype=torch.long)).logits.isfinite().all()


def test_the_cache_is_given_where_it_is_wanted():
    model, ids = make_gpt(), text_batch()["input_ids"]
    assert model(ids).past_key_values.get_seq_length() == 12
    assert model(ids, use_cache=False).past_key_values is None
    assert model.train()(ids).past_key_values is None  # it would only cost memory
    assert make_gpt(use_cache=False)(ids).past_key_values is None


def test_new_weights_are_drawn_as_in_gpt2():
    """What writes to the residual stream is smaller by the square root of how many do."""
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(vocab_size=256, hidden_size=256, num_hidden_layers=8))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            expected = 0.02 / 16**0.5 if writes else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi"])
def test_padded_rows_stay_finite_under_autocast(implementation, positions):
    """fp32's lowest number, the mask of padding, is -inf in bf16: a row of it would be NaN."""
    config = GPTConfig(
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        position_embedding_type=positions,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    model = GPTForCausalLM(config).eval()
    ids = torch.randint(17, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        single = model(ids[:1, 4:]).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[0, 4:], single[0], atol=2e-2, rtol=0)


def test_logits_are_kept_where_a_tensor_says():
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(vocab_size=17, hidden_size=16, num_attention_heads=2)).eval()
    ids = torch.randint(17, (2, 9))
    kept = model(ids, logits_to_keep=torch.tensor([1, 5])).logits
    torch.testing.assert_close(kept, model(ids).logits[:, [1, 5]])


def test_packed_texts_may_be_longer_together_than_the_learned_positions():
    """Two texts in one row, each from position 0: as each alone."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=17, hidden_size=16, num_attention_heads=2, max_position_embeddings=8
    )
    model = GPTForCausalLM(config).eval()
    ids = torch.randint(17, (1, 12))
    packed = model(ids, position_ids=torch.arange(6).repeat(2)[None], use_cache=False).logits
    alone = model(ids.view(2, 6)).logits
    torch.testing.assert_close(packed.view(2, 6, -1), alone, atol=1e-5, rtol=0)
