"""BERT: an encoder that reads a text from both sides, and learns by filling in blanks.

A language model that reads from left to right knows, at each position, only what came before. To
understand a sentence that is there as a whole, both sides help. But a network that sees both sides
sees the answer, too; so some tokens are hidden, and it has to say what they were (Devlin et al.
2018, "BERT: Pre-training of deep bidirectional transformers for language understanding"):

    tokens, some of them [MASK] (batch, time)
      -> embeddings of token, place and segment, summed, norm     (batch, time, hidden_size)
      -> blocks: attention to both sides, MLP                     (batch, time, hidden_size)
      -> head: linear, act, norm, times embedding^T               (batch, time, vocab_size)

The loss is the mean of -log p(token) over the hidden ones. What was learned serves other tasks: a
classifier reads the state of the first token, [CLS], through a layer of its own
(`BERTForSequenceClassification`); a sentence's vector is the mean of its states.

BERT's own checkpoints fit this model as they stand (`bert_from_transformers` in `from_bert.py`).
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .transformer import (
    IGNORED_LABEL,
    Attention,
    PostNormBlock,
    check_keeps_weights,
    check_labels,
    check_texts,
    check_transformer_config,
    sinusoidal_positions,
)

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "bert.BERTConfig",
    "AutoModel": "bert.BERTModel",
    "AutoModelForMaskedLM": "bert.BERTForMaskedLM",
    "AutoModelForSequenceClassification": "bert.BERTForSequenceClassification",
}


class BERTConfig(PreTrainedConfig):
    """The shape of a BERT; the defaults are those of mini-BERT, but for longer texts.

    Args:
        vocab_size: how many tokens there are.
        hidden_size: width of the residual stream; `num_attention_heads` must divide it.
        num_hidden_layers: how many blocks.
        num_attention_heads: heads per attention.
        intermediate_size: width inside the MLP; 4 * hidden_size where None.
        hidden_act: nonlinearity of the MLP and of the heads, a name in transformers' ACT2FN.
        max_position_embeddings: the longest text in tokens.
        type_vocab_size: segments that are told apart, such as two sentences.
        hidden_dropout: after the embeddings, each attention and each MLP, and before a classifier.
        attention_dropout: on the attention weights.
        layer_norm_eps: added to the variance in each LayerNorm.
        initializer_range: standard deviation of new weights; places begin 3 times as large.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-bert"
    attribute_map = {  # as transformers' BertConfig has them
        "hidden_dropout_prob": "hidden_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }

    vocab_size: int = 15000
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    max_position_embeddings: int = 128
    type_vocab_size: int = 2
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    # What the shared blocks ask for: places are told by learned embeddings.
    position_embedding_type = "learned"

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None and self.hidden_size:
            self.intermediate_size = 4 * self.hidden_size
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)
        check_transformer_config(self)
        if self.position_embedding_type != "learned":
            raise ValueError(
                f"position_embedding_type is {self.position_embedding_type!r}; BERT's places are "
                f"learned: leave it out"
            )
        if not isinstance(self.type_vocab_size, int) or self.type_vocab_size < 1:
            raise ValueError(
                f"type_vocab_size is {self.type_vocab_size!r}; it must be a whole number of at "
                f"least 1"
            )


class BERTPreTrainedModel(PreTrainedModel):
    """What `BERTModel` and its heads share: how they load, initialise and attend."""

    config: BERTConfig
    config_class = BERTConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    # The losses are means over the batch that was given; Trainer divides by what it accumulates.
    accepts_loss_kwargs = False
    _no_split_modules = ["PostNormBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": PostNormBlock,
        "attentions": OutputRecorder(Attention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MaskedLMHead):
            init.zeros_(module.bias)
        # All that is known of a blank comes by attention, which has to find its neighbours first.
        # From random places that takes long: small networks stay for thousands of updates where
        # nothing but the frequency of tokens is used. Places that begin as waves, and loud ones,
        # need one map to be learned for all of them (measured in configs/bert.yaml).
        if getattr(module, "begins_as_waves", False):
            waves = sinusoidal_positions(torch.arange(module.num_embeddings), module.embedding_dim)
            size = 3 * self.config.initializer_range  # root mean square; of waves, sqrt(1 / 2)
            init.copy_(module.weight, size * 2**0.5 * waves)


class Embeddings(nn.Module):
    """What each token is, where it stands and to which segment it belongs, as one vector."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, size)
        self.embed_positions.begins_as_waves = True
        self.embed_segments = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, inputs_embeds, token_type_ids=None, position_ids=None):
        """(batch, time, hidden_size), of `embed_tokens` -> the same shape."""
        time = inputs_embeds.shape[1]
        limit = self.embed_positions.num_embeddings
        if time > limit:
            raise ValueError(
                f"the text has {time} tokens, but the model has learned only {limit} positions; "
                f"cut it: tokenizer(..., truncation=True, max_length={limit})"
            )
        if position_ids is None:
            position_ids = torch.arange(time, device=inputs_embeds.device)[None]
        if token_type_ids is None:
            token_type_ids = position_ids.new_zeros(1, 1)
        # Summed in BERT's own order, since fp32 sums depend on it.
        summed = inputs_embeds + self.embed_segments(token_type_ids)
        return self.dropout(self.norm(summed + self.embed_positions(position_ids)))


class BERTModel(BERTPreTrainedModel):
    """Tokens to hidden states: embeddings and blocks."""

    def __init__(self, config: BERTConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            PostNormBlock(config, i, is_causal=False) for i in range(config.num_hidden_layers)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Those of the tokens."""
        return self.embeddings.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Takes others, such as of a larger vocabulary."""
        self.embeddings.embed_tokens = value

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Reads a batch of texts.

        Args:
            input_ids: (batch, time), or give `inputs_embeds` (batch, time, hidden_size).
            attention_mask: (batch, time), 1 for text, 0 for padding.
            token_type_ids: (batch, time), the segment of each token; all 0 where not given.
            position_ids: (batch, time); 0, 1, 2, ... where not given.

        Returns:
            `last_hidden_state` (batch, time, hidden_size), and where asked for `hidden_states` and
            `attentions`.

        Raises:
            ValueError: neither or both inputs; an empty text, or one longer than the positions that
                there are; attention weights of an attention that does not keep them.
        """
        check_keeps_weights(self.config, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.embed_tokens(input_ids)
        check_texts(inputs_embeds, attention_mask)
        hidden_states = self.embeddings(inputs_embeds, token_type_ids, position_ids)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class MaskedLMHead(nn.Module):
    """States to scores of all tokens: linear, act, norm, and the token embeddings transposed."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states):
        """(..., hidden_size) -> (..., vocab_size)."""
        return self.decoder(self.norm(self.act(self.dense(hidden_states)))) + self.bias


class BERTForMaskedLM(BERTPreTrainedModel):
    """BERT with its guesses of the hidden tokens; works with `pipeline("fill-mask")`."""

    _tied_weights_keys = {"head.decoder.weight": "bert.embeddings.embed_tokens.weight"}

    def __init__(self, config: BERTConfig):
        super().__init__(config)
        self.bert = BERTModel(config)
        self.head = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The token embeddings, transposed."""
        return self.head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Takes others; the bias follows their number."""
        self.head.decoder = new_embeddings
        missing = new_embeddings.out_features - len(self.head.bias)
        self.head.bias = nn.Parameter(nn.functional.pad(self.head.bias.data, (0, missing)))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Scores all tokens at each position; arguments as in `BERTModel.forward`, and:

        Args:
            labels: (batch, time), what the hidden tokens were; -100 elsewhere, which is left out
                of the loss.

        Returns:
            `loss`: mean of -log p(token) over the hidden ones, in nats, where labels were given;
            `logits` (batch, time, vocab_size): in training, of the hidden tokens only, (hidden,
            vocab_size), in the order in which they stand, since the others' would be most of the
            work and nobody asks; `hidden_states` and `attentions` where asked for.

        Raises:
            ValueError: a label is not a token.
        """
        outputs = self.bert(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        if labels is not None and self.training:
            hidden = labels != IGNORED_LABEL
            hidden_states, labels = hidden_states[hidden], labels[hidden]
        logits = self.head(hidden_states)
        loss = None
        if labels is not None:
            check_labels(labels, self.config.vocab_size)
            loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class BERTForSequenceClassification(BERTPreTrainedModel):
    """BERT with a score for each class of a text; works with `pipeline("text-classification")`.

    Raises:
        ValueError: the config asks for less than two classes, for several classes of one text, or
            for a quantity, which would need another loss.
    """

    def __init__(self, config: BERTConfig):
        super().__init__(config)
        problem = config.problem_type or "single_label_classification"
        if config.num_labels < 2 or problem != "single_label_classification":
            raise ValueError(
                f"num_labels is {config.num_labels}, problem_type {config.problem_type!r}; each "
                f"text gets one of at least two classes: set num_labels, leave out problem_type"
            )
        self.num_labels = config.num_labels  # where other libraries look for it
        self.bert = BERTModel(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Scores the classes of each text; arguments as in `BERTModel.forward`, and:

        Args:
            labels: (batch,), the number of each text's class.

        Returns:
            `loss`: mean of -log p(class), in nats, where labels were given; `logits` (batch,
            num_labels); `hidden_states` and `attentions` where asked for.

        Raises:
            ValueError: a label is not the number of a class. Several classes of one text, or a
                quantity, would need another loss.
        """
        outputs = self.bert(input_ids, attention_mask, token_type_ids, return_dict=True, **kwargs)
        pooled = self.pooler(outputs.last_hidden_state[:, 0]).tanh()  # of [CLS]
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            if labels.ndim != 1 or labels.is_floating_point():
                raise ValueError(
                    f"labels must be (batch,), whole numbers, one class for each text; they are "
                    f"{tuple(labels.shape)}, {labels.dtype}"
                )
            if labels.min() < 0 or labels.max() >= self.config.num_labels:
                raise ValueError(
                    f"labels must be from 0 to {self.config.num_labels - 1}, the classes of this "
                    f"model; there are {labels.min().item()} to {labels.max().item()}"
                )
            loss = nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["BERTConfig", "BERTForMaskedLM", "BERTForSequenceClassification", "BERTModel"]
