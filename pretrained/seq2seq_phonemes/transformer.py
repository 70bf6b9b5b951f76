"""The blocks of a Transformer: attention, MLP, positions.

A Transformer (Vaswani et al. 2017, "Attention is all you need") alternates two kinds of layer on a
residual stream of shape (batch, time, hidden_size): *attention* moves information between
positions, the *MLP* works on each position alone. With pre-normalisation (GPT-2) both read a
normalised copy of the stream and add their result to it; with post-normalisation (the paper, BERT)
the sum is normalised:

    x = x + Attention(LayerNorm(x))            x = LayerNorm(x + Attention(x))
    x = x + MLP(LayerNorm(x))                  x = LayerNorm(x + MLP(x))

A decoder that writes of another text looks at that text between the two (`CrossBlock`).

The blocks take everything from the config of the model that uses them: `hidden_size`,
`num_attention_heads`, `intermediate_size`, `hidden_act`, `position_embedding_type`, ...
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

POSITION_EMBEDDING_TYPES = ("learned", "sinusoidal", "rotary", "alibi")
IGNORED_LABEL = -100  # what Hugging Face losses leave out


def check_transformer_config(config):
    """Raises ValueError, in one line that says what would be right, for a shape that cannot be."""
    sizes = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    ]
    if hasattr(config, "max_position_embeddings"):  # a model of waves alone needs no limit
        sizes.append("max_position_embeddings")
    for name in sizes:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    if config.hidden_size % config.num_attention_heads:
        fits = [n for n in range(1, config.hidden_size + 1) if config.hidden_size % n == 0]
        nearest = min(fits, key=lambda n: abs(n - config.num_attention_heads))
        raise ValueError(
            f"hidden_size {config.hidden_size} cannot be divided among num_attention_heads "
            f"{config.num_attention_heads}; the nearest number of heads that fits is {nearest}"
        )
    if config.position_embedding_type not in POSITION_EMBEDDING_TYPES:
        raise ValueError(
            f"position_embedding_type is {config.position_embedding_type!r}; "
            f"it must be one of {', '.join(POSITION_EMBEDDING_TYPES)}"
        )
    head_dim = config.hidden_size // config.num_attention_heads
    if config.position_embedding_type == "rotary" and head_dim % 2:
        raise ValueError(
            f"rotary positions turn pairs of numbers, so the width of a head "
            f"(hidden_size / num_attention_heads = {head_dim}) must be even"
        )
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {config.hidden_act!r} is unknown to transformers' ACT2FN")
    for name in ("layer_norm_eps", "initializer_range"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0")
    for name in ("hidden_dropout", "attention_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be in [0, 1)")


def check_labels(labels: torch.LongTensor, vocab_size: int) -> None:
    """Raises ValueError where a label is not of the vocabulary; -100 is left out of a loss."""
    if torch.compiler.is_compiling():
        return
    wrong = labels[(labels >= vocab_size) | (labels < 0) & (labels != IGNORED_LABEL)]
    if wrong.numel():
        raise ValueError(
            f"labels must be below {vocab_size}, the size of the vocabulary, and not negative, but "
            f"for -100; there is {wrong[0].item()}"
        )


def check_texts(inputs, attention_mask) -> None:
    """Raises ValueError where a text has no tokens, so that there is nothing to attend to.

    Args:
        inputs: (batch, time, ...), tokens or their embeddings.
        attention_mask: (batch, time), 1 for text, 0 for padding; or None.
    """
    if torch.compiler.is_compiling():
        return
    if not inputs.shape[1] or (attention_mask is not None and not attention_mask.any(-1).all()):
        raise ValueError(
            "a text is empty (it has no tokens, or an attention_mask of 0 everywhere): leave it "
            "out, or give it at least the token that begins or ends a text"
        )


def check_keeps_weights(config, options: dict) -> None:
    """Raises ValueError where attention weights are asked of an attention that keeps none.

    Args:
        options: those of a forward.
    """
    if options.get("output_attentions") and config._attn_implementation != "eager":
        raise ValueError(
            f"{config._attn_implementation} attention keeps no weights; call "
            f'model.set_attn_implementation("eager") before output_attentions=True'
        )


# ------------------------------------------------------------------------------------- positions


def count_positions(inputs_embeds, attention_mask, past: int) -> torch.LongTensor:
    """0, 1, 2, ... from the first token that is not padding: (batch or 1, time)."""
    time, device = inputs_embeds.shape[1], inputs_embeds.device
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -time:]
    return torch.arange(past, past + time, device=device)[None]


def add_sinusoidal_positions(inputs_embeds, position_ids) -> torch.Tensor:
    """sqrt(dim) * embedding + waves: (batch, time, dim), from (batch, time, dim) and (.., time).

    Scaled up as in the paper (3.4), or the waves would drown the embeddings.
    """
    dim = inputs_embeds.shape[-1]
    waves = sinusoidal_positions(position_ids, dim).to(inputs_embeds.dtype)
    return inputs_embeds * dim**0.5 + waves


def sinusoidal_positions(positions: torch.Tensor, dim: int, base: float = 1e4) -> torch.Tensor:
    """The waves of Vaswani et al. 2017, section 3.5: (*positions.shape, dim).

    Column 2i holds sin(t / base^(2i/dim)), column 2i+1 the cosine of the same angle.
    """
    angles = rotary_angles(positions, dim, base)  # (..., ceil(dim / 2))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :dim]


def rotary_angles(positions: torch.Tensor, dim: int, base: float = 1e4) -> torch.Tensor:
    """t / base^(2i/dim) for each position t and i < dim/2: (*positions.shape, dim/2), in fp32."""
    frequencies = base ** -(torch.arange(0, dim, 2, device=positions.device) / dim)
    return positions[..., None].float() * frequencies


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns pair i of each head by position-dependent angles (RoFormer, Su et al. 2021).

    A query turned by its position times a key turned by its own depends only on the distance of
    the two. Pairs are (i, i + head_dim/2), as in Llama.

    Args:
        states: (batch, heads, time, head_dim)
        cos, sin: (batch or 1, 1, time, head_dim/2)
    """
    first, second = states.chunk(2, dim=-1)  # (batch, heads, time, head_dim/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """One slope a head (Press et al. 2022, "Train short, test long"): (num_heads,).

    2^(-8/n), 2^(-16/n), ... for a power of two n; between two powers of two, the rest is taken
    from every other slope of the next power.
    """
    n = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-4 * (i + 1) / n) for i in range(0, 2 * (num_heads - n), 2)]
    return torch.tensor(slopes)


def alibi_mask(
    causal_mask: torch.Tensor, num_heads: int, past: int, dtype: torch.dtype
) -> torch.Tensor:
    """Adds ALiBi's penalty, -slope * distance, to a causal mask.

    Args:
        causal_mask: (batch, 1, query_length, key_length), boolean (True = look) or additive
        past: number of keys before the first query
        dtype: of the queries

    Returns:
        additive mask, (batch, heads, query_length, key_length)
    """
    query_length, key_length = causal_mask.shape[-2:]
    positions = torch.arange(key_length, device=causal_mask.device)
    queries = past + torch.arange(query_length, device=causal_mask.device)
    distance = queries[:, None] - positions  # (query_length, key_length)
    bias = -alibi_slopes(num_heads).to(positions.device)[:, None, None] * distance
    if causal_mask.dtype == torch.bool:
        # The lowest finite number, not -inf: a row of padding looks nowhere, and stays finite.
        return bias.masked_fill(~causal_mask, torch.finfo(dtype).min).to(dtype)
    return (bias + causal_mask).clamp(min=torch.finfo(dtype).min).to(dtype)


# ------------------------------------------------------------------------------- attention, MLP


def eager_attention_forward(
    module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs
):
    """softmax(Q K^T / sqrt(head_dim) + mask) V, as four plain operations.

    In bf16 on a CPU and for short blocks, PyTorch's fused kernel is slower: GPT-2 trains 1.3 times
    as fast with this in its place (`benchmarks/gpt.py`). Elsewhere, take "sdpa".

    Args:
        query: (batch, heads, query_length, head_dim)
        key, value: (batch, heads, key_length, head_dim)
        attention_mask: additive, broadcastable to (batch, heads, query_length, key_length), or None

    Returns:
        output (batch, query_length, heads, head_dim), weights (batch, heads, query_length,
        key_length)
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        # Clamped first: fp32's lowest number rounds to -inf in bf16, and a row of padding, which
        # looks nowhere, would be NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores + attention_mask.clamp(min=lowest).to(scores.dtype)
    weights = nn.functional.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    output = torch.matmul(weights, value)  # (batch, heads, query_length, head_dim)
    return output.transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head self-attention: each position gathers what it needs from those it may see.

    Args:
        is_causal: whether a position sees only what is before it, where no mask says more.
    """

    def __init__(self, config, layer_idx: int, is_causal: bool = True):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = is_causal
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj.writes_to_stream = True

    def forward(
        self, hidden_states, attention_mask=None, rotation=None, past_key_values=None, **kwargs
    ):
        """(batch, time, hidden_size) -> the same, and the attention weights (None under SDPA)."""
        query = self.split_heads(self.q_proj(hidden_states))
        key = self.split_heads(self.k_proj(hidden_states))
        value = self.split_heads(self.v_proj(hidden_states))
        # each (batch, heads, time, head_dim)
        if rotation is not None:
            # Under autocast the angles are fp32: what is rotated keeps its own dtype.
            query, key = (rotate(x, *rotation).to(x.dtype) for x in (query, key))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
            # key, value: (batch, heads, past + time, head_dim)
        return self.attend(query, key, value, attention_mask, **kwargs)

    def split_heads(self, states):
        """(batch, time, hidden_size) -> (batch, heads, time, head_dim)."""
        return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(self, query, key, value, attention_mask, **kwargs):
        """What each query gathers, (batch, time, hidden_size), and with which weights."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        output = output.flatten(-2)  # the heads side by side again: (batch, time, hidden_size)
        return self.o_proj(output), weights


class CrossAttention(Attention):
    """Attention to another text: queries come from this one, keys and values from an encoder's."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False)

    def forward(
        self,
        hidden_states,
        encoder_hidden_states,
        attention_mask=None,
        past_key_values=None,
        **kwargs,
    ):
        """Gathers what each position needs from the other text.

        Args:
            hidden_states: (batch, target, hidden_size)
            encoder_hidden_states: (batch, source, hidden_size)
            past_key_values: an EncoderDecoderCache. The other text stays as it is while this one
                grows: its keys and values are made once, and kept there.

        Returns:
            (batch, target, hidden_size), and the attention weights (None under SDPA).
        """
        query = self.split_heads(self.q_proj(hidden_states))
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            kept = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return self.attend(query, kept.keys, kept.values, attention_mask, **kwargs)
        key = self.split_heads(self.k_proj(encoder_hidden_states))
        value = self.split_heads(self.v_proj(encoder_hidden_states))
        # each (batch, heads, source, head_dim)
        if past_key_values is not None:
            cache = past_key_values.cross_attention_cache
            key, value = cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return self.attend(query, key, value, attention_mask, **kwargs)


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between: what a position does with what it gathered."""

    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.down_proj.writes_to_stream = True
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states):
        """(..., hidden_size) -> (..., hidden_size)."""
        return self.down_proj(self.activation(self.up_proj(hidden_states)))


class Block(GradientCheckpointingLayer):
    """One pre-norm layer: x + Attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config, layer_idx: int, is_causal: bool = True):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer_idx, is_causal)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states, attention_mask=None, rotation=None, **kwargs):
        """(batch, time, hidden_size) -> (batch, time, hidden_size)."""
        normed = self.attention_norm(hidden_states)
        attended, _ = self.attention(normed, attention_mask, rotation, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        normed = self.mlp_norm(hidden_states)
        return hidden_states + self.dropout(self.mlp(normed))


class PostNormBlock(Block):
    """One post-norm layer: norm(x + Attention(x)), then norm(x + MLP(x)), of the same parts."""

    def forward(self, hidden_states, attention_mask=None, rotation=None, **kwargs):
        """(batch, time, hidden_size) -> (batch, time, hidden_size)."""
        attended, _ = self.attention(hidden_states, attention_mask, rotation, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class CrossBlock(Block):
    """One pre-norm layer of a decoder, which looks at another text, too.

    x + Attention(norm(x)), then x + CrossAttention(norm(x), encoder), then x + MLP(norm(x)).
    """

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = CrossAttention(config, layer_idx)

    def forward(
        self,
        hidden_states,
        attention_mask,
        encoder_hidden_states,
        encoder_attention_mask=None,
        past_key_values=None,
        **kwargs,
    ):
        """(batch, target, hidden_size) -> the same, with a look at (batch, source, hidden_size).

        The masks are as the attention implementation wants them; `past_key_values` is an
        EncoderDecoderCache.
        """
        own = None if past_key_values is None else past_key_values.self_attention_cache
        normed = self.attention_norm(hidden_states)
        attended, _ = self.attention(normed, attention_mask, past_key_values=own, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        normed = self.cross_attention_norm(hidden_states)
        attended, _ = self.cross_attention(
            normed, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        normed = self.mlp_norm(hidden_states)
        return hidden_states + self.dropout(self.mlp(normed))


@torch.no_grad()
def init_transformer_weights(module: nn.Module, config) -> None:
    """GPT-2's initialisation (Radford et al. 2019, section 2.3), for one module.

    Every weight is normal with `initializer_range`; those that write to the residual stream are
    smaller by sqrt(2 * layers), so that the stream's variance does not grow with depth.
    """
    # Asked of the linear map itself, not of the Attention or MLP around it: in code other than its
    # own, transformers passes over modules that have no parameters of their own.
    if getattr(module, "writes_to_stream", False):
        std = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        init.normal_(module.weight, mean=0.0, std=std)
