"""Pegasus's weights into our Transformer for seq2seq, and back.

    model = seq2seq_from_pegasus("google/pegasus-xsum")  # a Hub id, a folder, or the model itself
    pegasus_from_seq2seq(model).save_pretrained("as-pegasus")  # for tools that know only Pegasus

The two compute the same: the same outputs, the same gradients, to 1e-5 in fp32 (the tests compare
them). This file is not saved with a checkpoint; the model does not need it.

One thing stands in another order. Both add the same waves to the embeddings, but Pegasus has all
sines in the first half of the stream and all cosines in the second, where ours alternate, as in the
paper. Nothing else cares which number of the stream stands where: so all that reads the stream or
writes to it is put into our order.
"""

import copy
import os

import torch
from transformers import PegasusConfig, PegasusForConditionalGeneration

from .seq2seq_transformer import (
    Seq2SeqTransformerConfig,
    Seq2SeqTransformerForConditionalGeneration,
)

# Ours on the left, Pegasus's on the right.
KEYS = {
    "model.embed_tokens": "model.shared",
    "model.encoder.embed_tokens": "model.encoder.embed_tokens",
    "model.encoder.norm": "model.encoder.layer_norm",
    "model.decoder.embed_tokens": "model.decoder.embed_tokens",
    "model.decoder.norm": "model.decoder.layer_norm",
    "lm_head": "lm_head",
}
LAYER_KEYS = {  # of each layer of the encoder and of the decoder
    "attention_norm": "self_attn_layer_norm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.out_proj",
    "cross_attention_norm": "encoder_attn_layer_norm",
    "cross_attention.q_proj": "encoder_attn.q_proj",
    "cross_attention.k_proj": "encoder_attn.k_proj",
    "cross_attention.v_proj": "encoder_attn.v_proj",
    "cross_attention.o_proj": "encoder_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "mlp.up_proj": "fc1",
    "mlp.down_proj": "fc2",
}
WRITE_TO_STREAM = ("o_proj", "down_proj")

CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "hidden_act": "activation_function",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "init_std",
    "use_cache": "use_cache",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
    "decoder_start_token_id": "decoder_start_token_id",
}
# One number here, one for the encoder and one for the decoder there.
TWIN_KEYS = {
    "num_hidden_layers": "layers",
    "num_attention_heads": "attention_heads",
    "intermediate_size": "ffn_dim",
}
LAYER_NORM_EPS = 1e-5  # not to be chosen in Pegasus


def seq2seq_from_pegasus(
    reference: PegasusForConditionalGeneration | str | os.PathLike,
) -> Seq2SeqTransformerForConditionalGeneration:
    """A Transformer of ours with the weights of a Pegasus, in the same dtype and mode.

    Pegasus's `activation_dropout`, inside the MLP and in training only, is left out.

    Args:
        reference: the model, or where `from_pretrained` finds it; safetensors only.

    Raises:
        ValueError: the Pegasus uses an option that our Transformer does not have.
    """
    if not isinstance(reference, PegasusForConditionalGeneration):
        reference = PegasusForConditionalGeneration.from_pretrained(reference, use_safetensors=True)
    if reference.final_logits_bias.any():
        raise ValueError("this Pegasus adds a bias to its scores, which ours cannot do")
    config = config_from_pegasus(reference.config)
    model = Seq2SeqTransformerForConditionalGeneration(config).to(reference.dtype)
    model.load_state_dict(tensors_from_pegasus(reference.state_dict()))
    model.generation_config = copy.deepcopy(reference.generation_config)
    return model.train(reference.training)


def pegasus_from_seq2seq(
    model: Seq2SeqTransformerForConditionalGeneration, max_position_embeddings: int = 1024
) -> PegasusForConditionalGeneration:
    """The inverse, for texts of up to `max_position_embeddings` tokens, padded on the right.

    Raises:
        ValueError: the model uses an option that Pegasus does not have.
    """
    config = config_to_pegasus(model.config, max_position_embeddings)
    reference = PegasusForConditionalGeneration(config).to(model.dtype)
    tensors = reference.state_dict() | tensors_to_pegasus(model.state_dict())  # with its waves
    reference.load_state_dict(tensors)
    reference.generation_config = copy.deepcopy(model.generation_config)
    return reference.train(model.training)


def config_from_pegasus(reference: PegasusConfig) -> Seq2SeqTransformerConfig:
    """The config that computes the same; ValueError where none does."""
    wanted = {"scale_embedding": True, "tie_word_embeddings": True}
    wanted |= {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    wanted |= {f"decoder_{end}": getattr(reference, f"encoder_{end}") for end in TWIN_KEYS.values()}
    for name, value in wanted.items():
        found = getattr(reference, name)
        if found != value:
            raise ValueError(
                f"this Pegasus has {name}={found}, which our Transformer cannot do; "
                f"only a Pegasus with {name}={value} can be taken over"
            )
    values = {ours: getattr(reference, theirs) for ours, theirs in CONFIG_KEYS.items()}
    values |= {ours: getattr(reference, f"encoder_{end}") for ours, end in TWIN_KEYS.items()}
    return Seq2SeqTransformerConfig(layer_norm_eps=LAYER_NORM_EPS, bos_token_id=None, **values)


def config_to_pegasus(
    config: Seq2SeqTransformerConfig, max_position_embeddings: int
) -> PegasusConfig:
    """The PegasusConfig that computes the same; ValueError where none does."""
    wanted = {"layer_norm_eps": LAYER_NORM_EPS, "tie_word_embeddings": True}
    for name, value in wanted.items():
        if (found := getattr(config, name)) != value:
            raise ValueError(
                f"Pegasus has {name}={value} only; a model with {name}={found} cannot be exported"
            )
    values = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    for ours, end in TWIN_KEYS.items():
        values |= dict.fromkeys((f"encoder_{end}", f"decoder_{end}"), getattr(config, ours))
    return PegasusConfig(
        scale_embedding=True,
        max_position_embeddings=max_position_embeddings,
        forced_eos_token_id=None,
        **values,
    )


def tensors_from_pegasus(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pegasus's tensors under our names and in our order: weights, or their gradients."""
    order = _our_order(tensors["model.shared.weight"].shape[1])
    return {ours: _ordered(ours, tensors[theirs], order) for ours, theirs in _names(tensors)}


def tensors_to_pegasus(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `tensors_from_pegasus`."""
    order = _our_order(tensors["model.embed_tokens.weight"].shape[1]).argsort()
    return {theirs: _ordered(ours, tensors[ours], order) for ours, theirs in _names(tensors)}


def _our_order(dim: int) -> torch.Tensor:
    """Where each number of our stream stands in Pegasus's: sine, cosine, sine, cosine, ..."""
    half = (dim + 1) // 2
    return torch.stack((torch.arange(half), half + torch.arange(half)), dim=1).flatten()[:dim]


def _ordered(ours: str, value: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The tensor with that axis in another order which is the stream's, if one is."""
    module, kind = ours.split(".")[-2:]
    if module in WRITE_TO_STREAM or module.endswith("norm"):
        return value[order]
    return value[:, order] if kind == "weight" else value


def _names(tensors: dict):
    """(our name, Pegasus's name) of each tensor; `tensors` may be of either side."""
    pairs = list(KEYS.items())
    for i in range(_number_of_layers(tensors)):
        for stack in ("encoder", "decoder"):
            layer = f"model.{stack}.layers.{i}."
            pairs += [(layer + ours, layer + theirs) for ours, theirs in LAYER_KEYS.items()]
    for ours, theirs in pairs:
        for end in (".weight", ".bias"):
            if ours + end in tensors or theirs + end in tensors:
                yield ours + end, theirs + end


def _number_of_layers(tensors: dict) -> int:
    numbers = [int(name.split(".")[3]) for name in tensors if ".layers." in name]
    return max(numbers, default=-1) + 1
