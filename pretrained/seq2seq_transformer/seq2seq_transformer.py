"""Seq2seq without recurrence: the Transformer that translates.

A recurrent network reads word by word, each step waiting for the one before. "Attention is all you
need" (Vaswani et al. 2017) leaves the recurrence out: every word looks at all others at once, and
where it stands is told by waves that are added to it. The encoder reads the source to both sides;
the decoder looks back at what it wrote, and over at what was read:

    source tokens (batch, source)
      -> sqrt(hidden_size) * embedding + waves              (batch, source, hidden_size)
      -> blocks: attention to both sides, MLP; norm         e (batch, source, hidden_size)
    target tokens before (batch, target)
      -> sqrt(hidden_size) * embedding + waves              (batch, target, hidden_size)
      -> blocks: attention backwards, attention to e, MLP; norm
      -> times embedding^T                                  (batch, target, vocab_size)

Attention to e is the idea of `seq2seq.py`, once a layer and with several heads: queries come from
the target, keys and values from the source. In the paper each sum is normalised (post-norm); here,
what each layer reads is (pre-norm: Wang et al. 2019, "Learning deep Transformer models for machine
translation"), which learns without a long warm-up, and asks for one more norm at the end of the
encoder and of the decoder. Source and target share one vocabulary, whose embedding is the output
layer, too.

Pegasus (Zhang et al. 2020) is such a model; its weights fit (`from_pegasus.py`).
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .seq2seq_common import (
    check_inputs,
    check_special_tokens,
    label_loss,
    shift_right,
)
from .transformer import (
    Attention,
    Block,
    CrossAttention,
    CrossBlock,
    add_sinusoidal_positions,
    check_keeps_weights,
    check_texts,
    check_transformer_config,
    count_positions,
    init_transformer_weights,
)

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "seq2seq_transformer.Seq2SeqTransformerConfig",
    "AutoModel": "seq2seq_transformer.Seq2SeqTransformerModel",
    "AutoModelForSeq2SeqLM": "seq2seq_transformer.Seq2SeqTransformerForConditionalGeneration",
}


class Seq2SeqTransformerConfig(PreTrainedConfig):
    """The shape of a Transformer's encoder and decoder.

    Args:
        vocab_size: how many tokens source and target have together.
        hidden_size: width of the residual stream; `num_attention_heads` must divide it.
        num_hidden_layers: blocks of the encoder, and of the decoder.
        num_attention_heads: heads per attention.
        intermediate_size: width inside the MLP; 4 * hidden_size where None.
        hidden_act: nonlinearity of the MLP, a name in transformers' ACT2FN.
        hidden_dropout: after the embedding and after each attention and MLP.
        attention_dropout: on the attention weights.
        layer_norm_eps: added to the variance in each LayerNorm.
        initializer_range: standard deviation of new weights.
        tie_word_embeddings: the output layer is the embedding, transposed.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-seq2seq-transformer"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    hidden_act: str = "relu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1

    # What the shared check asks for. Waves go on for ever: no text is too long.
    position_embedding_type = "sinusoidal"

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None and self.hidden_size:
            self.intermediate_size = 4 * self.hidden_size
        check_transformer_config(self)
        check_special_tokens(self)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)


class Seq2SeqTransformerPreTrainedModel(PreTrainedModel):
    """What encoder, decoder, model and head share: how they load, initialise and attend."""

    config: Seq2SeqTransformerConfig
    config_class = Seq2SeqTransformerConfig
    base_model_prefix = "model"
    # The loss is a mean over the batch that was given; Trainer divides by what it accumulates.
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "CrossBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module):
        super()._init_weights(module)
        init_transformer_weights(module, self.config)


# ---------------------------------------------------------------------------- encoder and decoder


class Stack(Seq2SeqTransformerPreTrainedModel):
    """What encoder and decoder are made of: the shared embedding, waves, blocks and a norm."""

    def __init__(self, config: Seq2SeqTransformerConfig, embed_tokens: nn.Embedding, layers):
        super().__init__(config)
        self.embed_tokens = embed_tokens
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def embed(self, input_ids, attention_mask, past: int = 0):
        """What each token is and where it stands: (batch, time) -> (batch, time, hidden_size)."""
        embedded = self.embed_tokens(input_ids)
        position_ids = count_positions(embedded, attention_mask, past)
        return self.dropout(add_sinusoidal_positions(embedded, position_ids))


class Encoder(Stack):
    """Reads the source to both sides."""

    _can_record_outputs = {
        "hidden_states": Block,
        "attentions": OutputRecorder(Attention, index=1),
    }

    def __init__(self, config: Seq2SeqTransformerConfig, embed_tokens: nn.Embedding):
        layers = (Block(config, i, is_causal=False) for i in range(config.num_hidden_layers))
        super().__init__(config, embed_tokens, layers)

    @capture_outputs
    def forward(self, input_ids, attention_mask=None, **kwargs) -> BaseModelOutput:
        """(batch, source) tokens, and which of them are there -> (batch, source, hidden_size).

        Raises:
            ValueError: a source has no tokens, so that there is nothing to attend to.
        """
        check_texts(input_ids, attention_mask)
        hidden_states = self.embed(input_ids, attention_mask)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class Decoder(Stack):
    """Writes the target from left to right, with attention to what was read."""

    _can_record_outputs = {
        "hidden_states": CrossBlock,
        "attentions": OutputRecorder(Attention, index=1, layer_name="attention"),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: Seq2SeqTransformerConfig, embed_tokens: nn.Embedding):
        layers = (CrossBlock(config, i) for i in range(config.num_hidden_layers))
        super().__init__(config, embed_tokens, layers)

    @capture_outputs
    def forward(
        self,
        input_ids,
        encoder_hidden_states,
        attention_mask=None,
        encoder_attention_mask=None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """(batch, target) tokens, and (batch, source, hidden_size) -> (batch, target, hidden_size).

        The masks are (batch, past + target) and (batch, source), 1 for text, 0 for padding; the
        keys and values of these tokens are added to `past_key_values`.
        """
        cache, past = None, 0
        if past_key_values is not None:
            cache, past = past_key_values.self_attention_cache, past_key_values.get_seq_length()
        hidden_states = self.embed(input_ids, attention_mask, past)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=cache,
        )
        encoder_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,
                encoder_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.norm(hidden_states))


# ---------------------------------------------------------------------------------------- models


class Seq2SeqTransformerModel(Seq2SeqTransformerPreTrainedModel):
    """Source and target tokens to what the decoder makes of them."""

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "embed_tokens.weight",
        "decoder.embed_tokens.weight": "embed_tokens.weight",
    }

    def __init__(self, config: Seq2SeqTransformerConfig):
        super().__init__(config)
        # Padding is not learned, as in Pegasus; but where it ends a text, too, it is.
        padding = None if config.pad_token_id == config.eos_token_id else config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding)
        self.encoder = Encoder(config, self.embed_tokens)
        self.decoder = Decoder(config, self.embed_tokens)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """Reads sources, and their targets as far as they are there.

        Args:
            input_ids: (batch, source); or `encoder_outputs`, what the encoder made of them.
            attention_mask: (batch, source), 1 for text, 0 for padding on either side.
            decoder_input_ids: (batch, target), the tokens before each that is to be written.
            decoder_attention_mask: (batch, past + target). Padding on the right needs none: no
                token looks ahead.
            past_key_values: keys and values of the `past` target tokens, and of the source.
            use_cache: give the keys and values back; the config's `use_cache`, where not given,
                and never in training.

        Returns:
            `last_hidden_state` (batch, target, hidden_size); `past_key_values`;
            `encoder_last_hidden_state`. With `output_attentions=True`, of each layer:
            `cross_attentions` (batch, heads, target, source), how much each token that is written
            looks at each that was read, `encoder_attentions` and `decoder_attentions`. With
            `output_hidden_states=True`: `encoder_hidden_states` and `decoder_hidden_states`.

        Raises:
            ValueError: neither or both sources, an empty one, or no target; attention weights of
                an attention that does not keep them.
        """
        check_inputs(input_ids, encoder_outputs, decoder_input_ids)
        check_keeps_weights(self.config, kwargs)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            caches = (DynamicCache(config=self.config) for _ in range(2))
            past_key_values = EncoderDecoderCache(*caches)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, return_dict=True, **kwargs)
        elif isinstance(encoder_outputs, tuple):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            decoder_input_ids,
            encoder_outputs.last_hidden_state,
            attention_mask=decoder_attention_mask,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=past_key_values if use_cache else None,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class Seq2SeqTransformerForConditionalGeneration(
    Seq2SeqTransformerPreTrainedModel, GenerationMixin
):
    """The Transformer with the scores of the next token; works with `generate` and its beams."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Seq2SeqTransformerConfig):
        super().__init__(config)
        self.model = Seq2SeqTransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Scores the next token of the target; as `Seq2SeqTransformerModel.forward`, and:

        Args:
            decoder_input_ids: where not given, the labels shifted to the right, behind
                `decoder_start_token_id`.
            labels: (batch, target), the tokens to write; -100 is left out of the loss.

        Returns:
            `loss`: mean of -log p(token), in nats, where labels were given; `logits` (batch,
            target, vocab_size); and all that the model gives beside its last state.
        """
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return Seq2SeqLMOutput(
            loss=None if labels is None else label_loss(logits, labels), logits=logits, **rest
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """The tokens before each label, as transformers' collator asks: (batch, target)."""
        return shift_right(labels, self.config)


__all__ = [
    "Seq2SeqTransformerConfig",
    "Seq2SeqTransformerForConditionalGeneration",
    "Seq2SeqTransformerModel",
]
