"""GPT: a language model that reads from left to right.

The model gives, at each position, a distribution over the next token, and is trained to make the
text that it reads likely: the loss is the mean of -log p(token | all tokens before it). It is a
stack of Transformer blocks whose attention looks only backwards (Radford et al. 2019, "Language
Models are Unsupervised Multitask Learners", GPT-2).

    tokens (batch, time)
      -> embedding, + positions          (batch, time, hidden_size)
      -> blocks: attention, MLP          (batch, time, hidden_size)
      -> norm, times embedding^T         (batch, time, vocab_size): scores of the next token

GPT-2's checkpoints fit this model as it stands (`position_embedding_type="learned"`); rotary,
sinusoidal and ALiBi positions are there to compare.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .transformer import (
    Attention,
    Block,
    add_sinusoidal_positions,
    alibi_mask,
    check_transformer_config,
    count_positions,
    init_transformer_weights,
    rotary_angles,
)

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "gpt.GPTConfig",
    "AutoModel": "gpt.GPTModel",
    "AutoModelForCausalLM": "gpt.GPTForCausalLM",
}


class GPTConfig(PreTrainedConfig):
    """The shape of a GPT; the defaults are those of Tiny GPT.

    Args:
        vocab_size: how many tokens there are.
        hidden_size: width of the residual stream; `num_attention_heads` must divide it.
        num_hidden_layers: how many blocks.
        num_attention_heads: heads per attention.
        intermediate_size: width inside the MLP; 4 * hidden_size where None.
        hidden_act: nonlinearity of the MLP, a name in transformers' ACT2FN.
        position_embedding_type: "learned", "sinusoidal", "rotary" or "alibi".
        max_position_embeddings: the longest text in tokens; a hard limit for learned positions.
        hidden_dropout: after the embedding and after each attention and MLP.
        attention_dropout: on the attention weights.
        layer_norm_eps: added to the variance in each LayerNorm.
        initializer_range: standard deviation of new weights.
        tie_word_embeddings: the output layer is the embedding, transposed.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-gpt"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    hidden_act: str = "gelu_pytorch_tanh"
    position_embedding_type: str = "learned"
    max_position_embeddings: int = 256
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None and self.hidden_size:
            self.intermediate_size = 4 * self.hidden_size
        check_transformer_config(self)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)


class GPTPreTrainedModel(PreTrainedModel):
    """What `GPTModel` and its heads share: how they load, initialise and attend."""

    config: GPTConfig
    config_class = GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": Block,
        "attentions": OutputRecorder(Attention, index=1),
    }

    def _init_weights(self, module):
        super()._init_weights(module)
        init_transformer_weights(module, self.config)


class GPTModel(GPTPreTrainedModel):
    """Tokens to hidden states: embedding, positions, blocks, norm."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Reads a batch of texts.

        Args:
            input_ids: (batch, time), or give `inputs_embeds` (batch, time, hidden_size).
            attention_mask: (batch, past + time), 1 for text, 0 for padding on either side.
            position_ids: (batch, time); counted from the attention mask where not given.
            past_key_values: keys and values of the `past` tokens that were read before.
            use_cache: give the keys and values back; the config's `use_cache`, where not given,
                and never in training.

        Returns:
            `last_hidden_state` (batch, time, hidden_size), `past_key_values`, and where asked for
            `hidden_states` and `attentions`.

        Raises:
            ValueError: neither or both inputs; more tokens than there are learned positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, time, hidden_size)

        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        causal_mask = self._causal_mask(
            inputs_embeds, attention_mask, past_key_values, position_ids, past
        )
        if position_ids is None:
            position_ids = count_positions(inputs_embeds, attention_mask, past)
        hidden_states, rotation = self._add_positions(inputs_embeds, position_ids)

        hidden_states = self.dropout(hidden_states)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, causal_mask, rotation, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )

    def _causal_mask(self, inputs_embeds, attention_mask, past_key_values, position_ids, past):
        """Who may look where, in the form that the attention implementation wants."""
        alibi = self.config.position_embedding_type == "alibi"
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=not alibi,
        )
        if alibi:
            heads, dtype = self.config.num_attention_heads, inputs_embeds.dtype
            return alibi_mask(causal_mask, heads, past, dtype)
        return causal_mask

    def _add_positions(self, inputs_embeds, position_ids):
        """Tells the stream where each token stands; for rotary, gives (cos, sin) for the heads."""
        kind, dim = self.config.position_embedding_type, self.config.hidden_size
        if kind == "learned":
            limit = self.config.max_position_embeddings
            if not torch.compiler.is_compiling() and position_ids.max() >= limit:
                length = int(position_ids.max()) + 1
                raise ValueError(
                    f"the text has {length} tokens, but the model has learned only {limit} "
                    f"positions; shorten the text or generate fewer tokens"
                )
            return inputs_embeds + self.embed_positions(position_ids), None
        if kind == "sinusoidal":
            return add_sinusoidal_positions(inputs_embeds, position_ids), None
        if kind == "rotary":
            head_dim = dim // self.config.num_attention_heads
            angles = rotary_angles(position_ids, head_dim)[:, None]  # (batch, 1, time, head_dim/2)
            dtype = inputs_embeds.dtype
            return inputs_embeds, (angles.cos().to(dtype), angles.sin().to(dtype))
        return inputs_embeds, None  # alibi speaks through the mask


class GPTForCausalLM(GPTPreTrainedModel, GenerationMixin):
    """GPT with its scores for the next token; works with `generate` and `pipeline`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Scores the next token at each position; arguments as in `GPTModel.forward`, and:

        Args:
            labels: (batch, time), the tokens themselves (they are shifted here, as everywhere in
                transformers); -100 is left out of the loss.
            logits_to_keep: scores for the last so many positions only (0 for all), or for the
                positions in this tensor.

        Returns:
            `loss`: mean of -log p(next token), in nats, where labels were given; `logits` (batch,
            time, vocab_size); `past_key_values`; `hidden_states` and `attentions` where asked for.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["GPTConfig", "GPTForCausalLM", "GPTModel"]
