"""GPT-2's weights into our GPT, and back.

    model = gpt_from_gpt2("openai-community/gpt2")      # a Hub id, a folder, or the model itself
    gpt2_from_gpt(model).save_pretrained("as-gpt2")     # for tools that know only GPT-2

The two compute the same: the same outputs, the same gradients, to 1e-5 in fp32 (the tests compare
them). This file is not saved with a checkpoint; the model does not need it.
"""

import copy
import os

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from .gpt import GPTConfig, GPTForCausalLM

# Ours on the left, GPT-2's on the right; {i} is the number of the layer.
KEYS = {
    "model.embed_tokens": "transformer.wte",
    "model.embed_positions": "transformer.wpe",
    "model.norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
LAYER_KEYS = {
    "model.layers.{i}.attention_norm": "transformer.h.{i}.ln_1",
    "model.layers.{i}.attention.o_proj": "transformer.h.{i}.attn.c_proj",
    "model.layers.{i}.mlp_norm": "transformer.h.{i}.ln_2",
    "model.layers.{i}.mlp.up_proj": "transformer.h.{i}.mlp.c_fc",
    "model.layers.{i}.mlp.down_proj": "transformer.h.{i}.mlp.c_proj",
}
# GPT-2 computes query, key and value in one map: c_attn holds the three side by side.
QKV = [f"model.layers.{{i}}.attention.{name}_proj" for name in "qkv"]
C_ATTN = "transformer.h.{i}.attn.c_attn"

CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "max_position_embeddings": "n_positions",
    "hidden_dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "use_cache": "use_cache",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}

# The same function: "gelu_new" is eight operations in Python, the other is one.
FASTER = {"gelu_new": "gelu_pytorch_tanh"}


def gpt_from_gpt2(reference: GPT2LMHeadModel | str | os.PathLike) -> GPTForCausalLM:
    """A GPT with the weights of a GPT-2, in the same dtype and mode.

    Args:
        reference: the model, or where `from_pretrained` finds it; safetensors only.

    Raises:
        ValueError: the GPT-2 uses an option that our GPT does not have.
    """
    if not isinstance(reference, GPT2LMHeadModel):
        reference = GPT2LMHeadModel.from_pretrained(reference, use_safetensors=True)
    model = GPTForCausalLM(config_from_gpt2(reference.config)).to(reference.dtype)
    model.load_state_dict(tensors_from_gpt2(reference.state_dict()))
    model.generation_config = copy.deepcopy(reference.generation_config)
    return model.train(reference.training)


def gpt2_from_gpt(model: GPTForCausalLM) -> GPT2LMHeadModel:
    """A GPT-2 with the weights of a GPT, in the same dtype and mode.

    Raises:
        ValueError: the positions are not learned; GPT-2 has no others.
    """
    reference = GPT2LMHeadModel(config_to_gpt2(model.config)).to(model.dtype)
    reference.load_state_dict(tensors_to_gpt2(model.state_dict()))
    reference.generation_config = copy.deepcopy(model.generation_config)
    return reference.train(model.training)


def config_from_gpt2(reference: GPT2Config) -> GPTConfig:
    """The GPTConfig that computes the same; ValueError where none does."""
    wanted = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "embd_pdrop": reference.resid_pdrop,  # our hidden_dropout is both
    }
    for name, value in wanted.items():
        found = getattr(reference, name)
        if found != value:
            raise ValueError(
                f"this GPT-2 has {name}={found}, which GPT cannot do; "
                f"only a GPT-2 with {name}={value} can be taken over"
            )
    values = {ours: getattr(reference, theirs) for ours, theirs in CONFIG_KEYS.items()}
    values["hidden_act"] = FASTER.get(values["hidden_act"], values["hidden_act"])
    return GPTConfig(position_embedding_type="learned", **values)


def config_to_gpt2(config: GPTConfig) -> GPT2Config:
    """The GPT2Config that computes the same; ValueError where none does."""
    if config.position_embedding_type != "learned":
        raise ValueError(
            f"GPT-2 has learned positions only; a GPT with position_embedding_type="
            f"{config.position_embedding_type!r} cannot be exported"
        )
    values = {theirs: getattr(config, ours) for ours, theirs in CONFIG_KEYS.items()}
    slower = {fast: slow for slow, fast in FASTER.items()}
    values["activation_function"] = slower.get(config.hidden_act, config.hidden_act)
    return GPT2Config(embd_pdrop=config.hidden_dropout, **values)


def tensors_from_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2's tensors under our names and in our shapes: weights, or their gradients."""
    ours = {}
    for name, theirs in _names(tensors):
        value = tensors[theirs]
        if isinstance(name, list):
            for part, third in zip(name, value.chunk(3, dim=-1), strict=True):
                ours[part] = _turned(theirs, third)
        else:
            ours[name] = _turned(theirs, value)
    return ours


def tensors_to_gpt2(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `tensors_from_gpt2`."""
    reference = {}
    for name, theirs in _names(tensors):
        if isinstance(name, list):
            turned = [_turned(theirs, tensors[part]) for part in name]
            reference[theirs] = torch.cat(turned, dim=-1)
        else:
            reference[theirs] = _turned(theirs, tensors[name])
    return reference


def _turned(theirs: str, value: torch.Tensor) -> torch.Tensor:
    """GPT-2's linear maps (named c_...) hold their weights as (in, out), `nn.Linear` (out, in)."""
    linear = theirs.split(".")[-2].startswith("c_")
    return value.T.contiguous() if linear and value.ndim == 2 else value


def _names(tensors: dict):
    """(our name or three, GPT-2's name) of each tensor; `tensors` may be of either side."""
    pairs = list(KEYS.items())
    for i in range(_number_of_layers(tensors)):
        pairs += [(ours.format(i=i), theirs.format(i=i)) for ours, theirs in LAYER_KEYS.items()]
        pairs.append(([ours.format(i=i) for ours in QKV], C_ATTN.format(i=i)))
    for ours, theirs in pairs:
        for end in (".weight", ".bias"):
            name = [part + end for part in ours] if isinstance(ours, list) else ours + end
            first = name[0] if isinstance(name, list) else name
            if first in tensors or theirs + end in tensors:
                yield name, theirs + end


def _number_of_layers(tensors: dict) -> int:
    prefixes = ("model.layers.", "transformer.h.")
    numbers = [int(name.split(".")[2]) for name in tensors if name.startswith(prefixes)]
    return max(numbers, default=-1) + 1
