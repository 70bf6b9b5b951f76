"""What the two kinds of seq2seq share: which tokens the decoder reads, and how it is scored.

In training the decoder reads the true target, one token behind ("teacher forcing"), so that all of
its tokens are learned at once:

    target    the    dog    runs   <end>      the labels: what is to be written
    reads   <start>  the    dog    runs       what stands before each
"""

import torch
from torch import nn

from .transformer import IGNORED_LABEL, check_labels


def check_special_tokens(config) -> None:
    """Raises ValueError, in one line, where padding or the decoder's start is no token."""
    for name in ("pad_token_id", "decoder_start_token_id"):
        value = getattr(config, name)
        if not isinstance(value, int) or not 0 <= value < config.vocab_size:
            raise ValueError(
                f"{name} is {value!r}; it must be a token, from 0 to {config.vocab_size - 1}"
            )


def check_inputs(input_ids, encoder_outputs, decoder_input_ids) -> None:
    """Raises ValueError where there are neither or both sources, or there is no target."""
    if (input_ids is None) == (encoder_outputs is None):
        raise ValueError("give either input_ids or encoder_outputs")
    if decoder_input_ids is None:
        raise ValueError("give decoder_input_ids: at least decoder_start_token_id")


def shift_right(labels: torch.LongTensor, config) -> torch.LongTensor:
    """The tokens before each label: (batch, target) -> (batch, target).

    Raises:
        ValueError: a label is not a token.
    """
    check_labels(labels, config.vocab_size)
    shifted = labels.new_full(labels.shape, config.decoder_start_token_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == IGNORED_LABEL, config.pad_token_id)


def label_loss(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Mean of -log p(label), in nats: (batch, target, vocab_size), (batch, target) -> ().

    Labels of -100 are left out.

    Raises:
        ValueError: a label is not a token.
    """
    check_labels(labels, logits.shape[-1])
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL
    )
