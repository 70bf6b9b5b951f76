"""Seq2seq with attention: one network reads a sentence, another writes a new one.

The encoder reads the source from both sides; the decoder writes the target from left to right. The
first such networks had to put all of a sentence into one vector (Sutskever et al. 2014). Attention
lets each word that is written look at all that were read (Bahdanau et al. 2014, "Neural machine
translation by jointly learning to align and translate"; Luong et al. 2015, "Effective approaches to
attention-based neural machine translation"):

    source tokens (batch, source)
      -> embedding, GRU layers in both directions            e (batch, source, 2 * hidden_size)
    target tokens before (batch, target)
      -> embedding, GRU layers, begun with the encoder's end h (batch, target, hidden_size)
      -> weights  a = softmax over the source of score(h, e)   (batch, target, source)
      -> context  c = sum of a e                               (batch, target, 2 * hidden_size)
      -> tanh(W [c; h]), linear map                            (batch, target, vocab_size)

    With `pre_attention`, the embedding x asks for a context, too, and the GRU layers read x + V c.

    score(h, e)      additive   v . tanh(W h + U e)                                   Bahdanau
                     general    h . W e                                               Luong
                     dot        h . K e, K fixed: the mean of both directions         Luong

`attention_type="none"` leaves the context out: all that the decoder knows of the source is where
its state begins. All scores are used in Luong's order: the context comes after the recurrent
layers, not before them as Bahdanau has it, so that the whole target is read at once in training.
But then the decoder does not know where it looked before, and in long texts takes one word for a
like one elsewhere. `sinusoidal_positions` tells both sides where each token stands, by the waves of
the Transformer; where a token is a character, they may count words, and characters within a word
(`separator_token_ids`).

Source and target share one vocabulary.
"""

import math

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple

from .recurrent import (
    RecurrentLayer,
    RecurrentState,
    check_recurrent_config,
    init_recurrent_weights,
)
from .seq2seq_common import (
    check_inputs,
    check_special_tokens,
    label_loss,
    shift_right,
)
from .transformer import check_texts
from .word_positions import AT_START_TOKEN, place

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "seq2seq.Seq2SeqConfig",
    "AutoModel": "seq2seq.Seq2SeqModel",
    "AutoModelForSeq2SeqLM": "seq2seq.Seq2SeqForConditionalGeneration",
}


class Seq2SeqConfig(PreTrainedConfig):
    """The shape of a recurrent encoder and decoder.

    Args:
        vocab_size: how many tokens source and target have together.
        hidden_size: width of embedding and of the state of each direction.
        num_hidden_layers: recurrent layers of the encoder, and of the decoder.
        attention_type: "additive", "general", "dot" or "none".
        pre_attention: attend also before the decoder's recurrent layers, which then know of the
            source what each token before, and its place, have asked for.
        sinusoidal_positions: add waves to the embeddings.
        wave_size: how high the waves are, in standard deviations of new embeddings.
        wave_base: the slowest wave is nearly so many times as long as the fastest, which comes
            again after 2 pi places.
        separator_token_ids: tokens that words stand between. With them, half of the waves count
            words, the others the tokens since the word began.
        hidden_dropout: on what each layer and the output layer read.
        initializer_range: standard deviation of new embeddings.
        tie_word_embeddings: the output layer is the embedding, transposed.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-seq2seq"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 1
    attention_type: str = "additive"
    pre_attention: bool = False
    sinusoidal_positions: bool = False
    wave_size: float = 1.0
    wave_base: float = 1e4
    separator_token_ids: list[int] | None = None
    hidden_dropout: float = 0.0
    initializer_range: float = 0.1
    tie_word_embeddings: bool = True
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    decoder_start_token_id: int | None = 1

    def __post_init__(self, **kwargs):
        check_recurrent_config(self, "attention_type", ATTENTIONS)
        check_special_tokens(self)
        if self.pre_attention and self.attention_type == "none":
            raise ValueError(
                "pre_attention needs an attention_type: set another than none, or leave it out"
            )
        if not 0 < self.wave_size < math.inf:
            raise ValueError(f"wave_size is {self.wave_size}; it must be above 0, and finite")
        if not 1 < self.wave_base < math.inf:
            raise ValueError(f"wave_base is {self.wave_base}; it must be above 1, and finite")
        if (self.wave_size, self.wave_base) != (1, 1e4) and not self.sinusoidal_positions:
            raise ValueError("wave_size and wave_base are of waves: set sinusoidal_positions")
        separators = self.separator_token_ids or []
        if separators and not self.sinusoidal_positions:
            raise ValueError("separator_token_ids say what waves count: set sinusoidal_positions")
        if not all(0 <= token < self.vocab_size for token in separators):
            raise ValueError(
                f"separator_token_ids are {separators}; they must be from 0 to "
                f"{self.vocab_size - 1}, tokens of the vocabulary"
            )
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)


# -------------------------------------------------------------------------------------- attention


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear map that begins with weights by Glorot and Bengio 2010."""
    module = nn.Linear(in_features, out_features, bias)
    module.keeps_size = True
    return module


class AdditiveAttention(nn.Module):
    """score(h, e) = v . tanh(W h + U e): a small network of its own (Bahdanau et al. 2014)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.query_proj = linear(hidden_size, hidden_size, bias=False)
        self.key_proj = linear(2 * hidden_size, hidden_size)
        self.score_proj = linear(hidden_size, 1, bias=False)

    def forward(self, hidden, encoded):
        """(batch, target, hidden), (batch, source, 2 * hidden) -> (batch, target, source)."""
        # (batch, target, 1, hidden_size) + (batch, 1, source, hidden_size)
        summed = self.query_proj(hidden)[:, :, None] + self.key_proj(encoded)[:, None]
        return self.score_proj(summed.tanh())[..., 0]


class GeneralAttention(nn.Module):
    """score(h, e) = h . W e: a product, with a map to the decoder's space (Luong et al. 2015)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.key_proj = linear(2 * hidden_size, hidden_size, bias=False)

    def forward(self, hidden, encoded):
        """(batch, target, hidden), (batch, source, 2 * hidden) -> (batch, target, source)."""
        return hidden @ self.key_proj(encoded).mT


class DotAttention(nn.Module):
    """score(h, e) = h . e: a product, and nothing to learn (Luong et al. 2015).

    It takes vectors of one width: of the two directions of the encoder, their mean.
    """

    def __init__(self, hidden_size: int):
        super().__init__()

    def forward(self, hidden, encoded):
        """(batch, target, hidden), (batch, source, 2 * hidden) -> (batch, target, source)."""
        return hidden @ encoded.unflatten(-1, (2, -1)).mean(2).mT


def attend(attention: nn.Module, hidden, encoded, mask=None):
    """The context of each position of the target, and where it looked.

    Args:
        attention: the score.
        hidden: (batch, target, hidden_size), what asks.
        encoded: (batch, source, 2 * hidden_size), what is looked at.
        mask: (batch, source), 1 for text, 0 for padding; or None.

    Returns:
        (batch, target, 2 * hidden_size), (batch, target, source).
    """
    scores = attention(hidden, encoded).float()
    if mask is not None:
        scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).to(encoded.dtype)
    return weights @ encoded, weights


ATTENTIONS = {
    "additive": AdditiveAttention,
    "general": GeneralAttention,
    "dot": DotAttention,
    "none": None,
}


# ---------------------------------------------------------------------------- encoder and decoder


class BidirectionalLayer(nn.Module):
    """Two GRUs side by side, one of which reads from the end to the beginning."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.onward = RecurrentLayer("gru", input_size, hidden_size)
        self.back = RecurrentLayer("gru", input_size, hidden_size)

    def forward(self, inputs, mask=None):
        """(batch, source, input_size) -> (batch, source, 2 * hidden_size), (batch, 2 * ..)."""
        onward, (end,) = self.onward(inputs, mask=mask)
        back, (beginning,) = self.back(inputs, mask=mask, reverse=True)
        return torch.cat((onward, back), -1), torch.cat((end, beginning), -1)


class Encoder(nn.Module):
    """Reads the source from both sides."""

    main_input_name = "input_ids"

    def __init__(self, config: Seq2SeqConfig, embed_tokens: nn.Embedding):
        super().__init__()
        size = config.hidden_size
        self.config, self.embed_tokens = config, embed_tokens
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            BidirectionalLayer(2 * size if i else size, size)
            for i in range(config.num_hidden_layers)
        )
        # From what both directions end with to where a layer of the decoder begins.
        self.bridges = nn.ModuleList(linear(2 * size, size) for _ in self.layers)

    def forward(self, input_ids, attention_mask=None, **kwargs) -> BaseModelOutputWithPooling:
        """(batch, source) tokens, and which of them are there.

        Returns:
            `last_hidden_state` (batch, source, 2 * hidden_size); `pooler_output` (batch, layers *
            hidden_size), where the decoder's layers begin.
        """
        check_texts(input_ids, attention_mask)
        if attention_mask is not None and attention_mask.all():
            attention_mask = None
        embeddings = self.embed_tokens(input_ids)
        hidden_states, _ = place(self.config, embeddings, input_ids, attention_mask)
        starts = []
        for layer, bridge in zip(self.layers, self.bridges, strict=True):
            hidden_states, ends = layer(self.dropout(hidden_states), attention_mask)
            starts.append(bridge(ends.to(hidden_states.dtype)).tanh())
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=torch.cat(starts, -1)
        )


class Decoder(nn.Module):
    """Writes the target from left to right, with attention to what was read."""

    def __init__(self, config: Seq2SeqConfig, embed_tokens: nn.Embedding):
        super().__init__()
        size, attention = config.hidden_size, ATTENTIONS[config.attention_type]
        self.config, self.embed_tokens = config, embed_tokens
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer("gru", size, size) for _ in range(config.num_hidden_layers)
        )
        if config.pre_attention:
            self.pre_attention = attention(size)
            self.context_proj = linear(2 * size, size)
        self.attention = attention and attention(size)
        self.output_proj = linear(3 * size if attention else size, size)

    def forward(self, decoder_input_ids, mask, encoded, encoder_mask, starts, past: int = 0):
        """Reads the target's tokens before, and says what it makes of them.

        Args:
            decoder_input_ids: (batch, target).
            mask: (batch, past + target), 1 for text, 0 for padding; or None.
            encoded: (batch, source, 2 * hidden_size).
            encoder_mask: (batch, source), 1 for text, 0 for padding; or None.
            starts: the state of each layer before, (batch, hidden_size) each, in fp32 or fp64; then
                `state` of `count_words`, if words are counted and tokens were read before.
            past: how many tokens of the target were read before.

        Returns:
            (batch, target, hidden_size); `starts` after; the attention (batch, target, source),
            None without.
        """
        depth, embeddings = len(self.layers), self.embed_tokens(decoder_input_ids)
        word_state = starts[depth] if len(starts) > depth else AT_START_TOKEN
        hidden_states, word_state = place(
            self.config, embeddings, decoder_input_ids, mask, past, word_state
        )
        if mask is not None:
            mask = mask[:, -decoder_input_ids.shape[1] :]
        if self.config.pre_attention:
            context, _ = attend(self.pre_attention, hidden_states, encoded, encoder_mask)
            hidden_states = hidden_states + self.context_proj(context)
        ends = []
        for layer, start in zip(self.layers, starts[:depth], strict=True):
            hidden_states, end = layer(self.dropout(hidden_states), start, mask=mask)
            ends.append(end)
        if self.config.separator_token_ids:
            ends.append(word_state)
        if self.attention is None:
            return self.output_proj(self.dropout(hidden_states)).tanh(), ends, None
        context, weights = attend(self.attention, hidden_states, encoded, encoder_mask)
        seen = torch.cat((context, hidden_states), -1)
        return self.output_proj(self.dropout(seen)).tanh(), ends, weights


# ---------------------------------------------------------------------------------------- models


class Seq2SeqPreTrainedModel(PreTrainedModel):
    """What `Seq2SeqModel` and its head share: how they load and initialise."""

    config: Seq2SeqConfig
    config_class = Seq2SeqConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch that was given; Trainer divides by what it accumulates.
    accepts_loss_kwargs = False
    _no_split_modules = ["RecurrentLayer"]
    _is_stateful = True  # a state cannot be taken back by some tokens, as keys and values can

    def _init_weights(self, module):
        super()._init_weights(module)
        init_recurrent_weights(module)
        if getattr(module, "keeps_size", False):  # what it gives is as large as what it gets
            init.xavier_uniform_(module.weight)


class Seq2SeqModel(Seq2SeqPreTrainedModel):
    """Source and target tokens to what the decoder makes of them."""

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "embed_tokens.weight",
        "decoder.embed_tokens.weight": "embed_tokens.weight",
    }

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config)
        # No padding_idx: padding may be the token that ends a text, too, which is to be learned.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
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
        encoder_outputs: BaseModelOutputWithPooling | tuple | None = None,
        past_key_values: RecurrentState | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """Reads sources, and their targets as far as they are there.

        Args:
            input_ids: (batch, source); or `encoder_outputs`, what the encoder made of them.
            attention_mask: (batch, source), 1 for text, 0 for padding on either side.
            decoder_input_ids: (batch, target), the tokens before each that is to be written.
            decoder_attention_mask: (batch, past + target). Padding on the right needs none: nothing
                reads what comes after it.
            past_key_values: the decoder's state after the tokens that it read before.
            use_cache: give the state after these tokens back; the config's `use_cache`, where not
                given, and never in training.

        Returns:
            `last_hidden_state` (batch, target, hidden_size); `past_key_values`;
            `encoder_last_hidden_state`; with `output_attentions=True`, `cross_attentions`, one of
            (batch, 1, target, source): how much each token that is written looks at each that was
            read, behind the recurrent layers.

        Raises:
            ValueError: neither or both sources, an empty one, or no target; `encoder_outputs` of
                another kind of encoder.
        """
        check_inputs(input_ids, encoder_outputs, decoder_input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        elif isinstance(encoder_outputs, tuple):
            encoder_outputs = BaseModelOutputWithPooling(*encoder_outputs)
        if decoder_attention_mask is not None and decoder_attention_mask.all():
            decoder_attention_mask = None
        past = past_key_values.get_seq_length() if past_key_values else 0
        starts = past_key_values.layers if past_key_values else self.first_states(encoder_outputs)
        hidden_states, ends, weights = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs.last_hidden_state,
            attention_mask,
            starts,
            past,
        )
        shown = kwargs.get("output_attentions", self.config.output_attentions)
        state = RecurrentState(ends, past + decoder_input_ids.shape[1])
        return Seq2SeqModelOutput(
            last_hidden_state=hidden_states,
            # No state where none is wanted: without a cache, `generate` gives all tokens again.
            past_key_values=state if use_cache else None,
            cross_attentions=(weights[:, None],) if shown and weights is not None else None,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
        )

    def first_states(self, encoder_outputs) -> list[tuple[torch.Tensor]]:
        """Where the decoder's layers begin: (batch, hidden_size) each, in fp32 or fp64."""
        starts = getattr(encoder_outputs, "pooler_output", None)
        if starts is None:
            raise ValueError(
                "encoder_outputs must have a pooler_output, where the decoder begins: give all "
                "that model.get_encoder() gives"
            )
        dtype = torch.promote_types(starts.dtype, torch.float32)
        return [(start,) for start in starts.to(dtype).chunk(self.config.num_hidden_layers, -1)]


class Seq2SeqForConditionalGeneration(Seq2SeqPreTrainedModel, GenerationMixin):
    """Seq2seq with the scores of the next token; works with `generate` and its beams."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Seq2SeqConfig):
        super().__init__(config)
        self.model = Seq2SeqModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `generate` begins without a cache, and the first call makes ours

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutputWithPooling | tuple | None = None,
        past_key_values: RecurrentState | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Scores the next token of the target at each position; as `Seq2SeqModel.forward`, and:

        Args:
            decoder_input_ids: where not given, the labels shifted to the right, behind
                `decoder_start_token_id`.
            labels: (batch, target), the tokens to write; -100 is left out of the loss.

        Returns:
            `loss`: mean of -log p(token), in nats, where labels were given; `logits` (batch,
            target, vocab_size); `past_key_values`, `cross_attentions` and
            `encoder_last_hidden_state`.
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
        logits = self.lm_head(self.dropout(outputs.last_hidden_state))
        return Seq2SeqLMOutput(
            loss=None if labels is None else label_loss(logits, labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """The tokens before each label, as transformers' collator asks: (batch, target)."""
        return shift_right(labels, self.config)


__all__ = ["Seq2SeqConfig", "Seq2SeqForConditionalGeneration", "Seq2SeqModel"]
