"""RNN: a language model with a memory of fixed size.

The model reads a text from left to right and gives, at each position, a distribution over the next
token. All that it knows of what came before is in its state: it can go on for ever, at the same
cost for each token, and it is for the network to learn what is worth keeping (Mikolov et al. 2010;
Graves 2013, "Generating sequences with recurrent neural networks"; Karpathy's char-rnn, 2015).

    tokens (batch, time)
      -> embedding                       (batch, time, hidden_size)
      -> recurrent layers                (batch, time, hidden_size), and a state that goes on
      -> linear map                      (batch, time, vocab_size): scores of the next token

The layers are of plain cells, GRUs or LSTMs (`cell_type`; they are in `recurrent.py`). Weights of
`torch.nn.RNN`, `GRU` and `LSTM` fit as they are.

Through a long text, gradients are followed for one block only and the state is handed on to the
next block ("truncated backpropagation through time"): give `past_key_values`, detached, to the next
call.
"""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .recurrent import (
    CELLS,
    RecurrentLayer,
    RecurrentState,
    check_recurrent_config,
    init_recurrent_weights,
)

# What a saved model offers to a process that has never heard of this package.
AUTO_MAP = {
    "AutoConfig": "rnn.RNNConfig",
    "AutoModel": "rnn.RNNModel",
    "AutoModelForCausalLM": "rnn.RNNForCausalLM",
}


class RNNConfig(PreTrainedConfig):
    """The shape of a recurrent language model.

    Args:
        vocab_size: how many tokens there are.
        hidden_size: width of embedding and state.
        num_hidden_layers: how many recurrent layers, one above the other.
        cell_type: "rnn", "gru" or "lstm".
        hidden_dropout: on what each layer and the output layer read; not from one position to the
            next (Zaremba et al. 2014).
        initializer_range: standard deviation of a new output layer.

    Raises:
        ValueError: for a shape that cannot be; says what would be right.
    """

    model_type = "groundup-rnn"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 2
    cell_type: str = "lstm"
    hidden_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        check_recurrent_config(self, "cell_type", CELLS)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    @property
    def num_parameters(self) -> int:
        """Of the whole language model: embedding, layers, output layer."""
        per_layer = 2 * CELLS[self.cell_type].num_gates * self.hidden_size * (self.hidden_size + 1)
        return 2 * self.vocab_size * self.hidden_size + self.num_hidden_layers * per_layer


class RNNPreTrainedModel(PreTrainedModel):
    """What `RNNModel` and its heads share: how they load and initialise."""

    config: RNNConfig
    config_class = RNNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentLayer"]
    _is_stateful = True  # a state cannot be taken back by some tokens, as keys and values can
    _can_record_outputs = {"hidden_states": RecurrentLayer}

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            # As large as what the layers above read: their weights are drawn for that.
            init.normal_(module.weight)
        init_recurrent_weights(module)


class RNNModel(RNNPreTrainedModel):
    """Tokens to hidden states: embedding and recurrent layers."""

    def __init__(self, config: RNNConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(config.cell_type, config.hidden_size, config.hidden_size)
            for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RecurrentState | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Reads a batch of texts.

        Args:
            input_ids: (batch, time), or give `inputs_embeds` (batch, time, hidden_size).
            attention_mask: (batch, past + time), 1 for text, 0 for padding on either side: there
                the state stays as it is.
            past_key_values: the state after the tokens that were read before. It is not changed.
            use_cache: give the state after these tokens back; the config's `use_cache`, where not
                given, and in training only where asked for.

        Returns:
            `last_hidden_state` (batch, time, hidden_size), `past_key_values`, and where asked for
            `hidden_states`.

        Raises:
            ValueError: neither or both inputs.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (batch, time, hidden_size)
        time = inputs_embeds.shape[1]
        mask = None
        if attention_mask is not None and not attention_mask[:, -time:].all():
            mask = attention_mask[:, -time:]
        before = past_key_values.layers if past_key_values else [None] * len(self.layers)
        past = past_key_values.get_seq_length() if past_key_values else 0

        hidden_states, after = inputs_embeds, []
        for layer, state in zip(self.layers, before, strict=True):
            hidden_states, state = layer(self.dropout(hidden_states), state, mask)
            after.append(state)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            # No state where none is wanted: without a cache, `generate` gives the whole text again.
            past_key_values=RecurrentState(after, past + time) if use_cache else None,
        )


class RNNForCausalLM(RNNPreTrainedModel, GenerationMixin):
    """A recurrent network with its scores for the next token; works with `generate`."""

    def __init__(self, config: RNNConfig):
        super().__init__(config)
        self.model = RNNModel(config)
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
        past_key_values: RecurrentState | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Scores the next token at each position; arguments as in `RNNModel.forward`, and:

        Args:
            labels: (batch, time), the tokens themselves (they are shifted here, as everywhere in
                transformers); -100 is left out of the loss.
            shift_labels: (batch, time), in place of `labels`: the token that follows each. Of a
                block in the middle of a text, also the last token has one.
            logits_to_keep: scores for the last so many positions only (0 for all), or for the
                positions in this tensor.

        Returns:
            `loss`: mean of -log p(next token), in nats, where labels were given; `logits` (batch,
            time, vocab_size); `past_key_values`; `hidden_states` where asked for.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(self.dropout(hidden_states))
        loss = None
        if shift_labels is not None:
            shift_labels = shift_labels.contiguous()  # transformers' loss looks at it as one row
        if labels is not None or shift_labels is not None:
            loss = self.loss_function(
                logits,
                labels,
                vocab_size=self.config.vocab_size,
                shift_labels=shift_labels,
                **kwargs,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


__all__ = ["RNNConfig", "RNNForCausalLM", "RNNModel"]
