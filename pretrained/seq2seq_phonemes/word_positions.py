"""Where each token stands: in its text, or, of characters, in which word and where in it."""

import torch

from .transformer import count_positions, sinusoidal_positions

# How many separators were read, and where the last one stood: none, as if one had come before. The
# decoder's start token stands where the separator before its first word would.
BEFORE_ANY_WORD, AT_START_TOKEN = (0, -1), (0, 0)


def count_words(input_ids, positions, separators, attention_mask=None, state=BEFORE_ANY_WORD):
    """Which word each token belongs to, and where in it: a separator begins the next word.

    Args:
        input_ids: (batch, time).
        positions: where each token stands in the text, (batch or 1, time).
        separators: tokens that words stand between, a list.
        attention_mask: (batch, time), 0 for padding, which separates nothing.
        state: of what was read before, as `BEFORE_ANY_WORD`, (batch, 1) each.

    Returns:
        0, 0, 0, 1, 1, ... and 1, 2, 3, 0, 1, ..., (batch, time) each; the state after.
    """
    before, last = state
    separates = torch.isin(input_ids, torch.tensor(separators, device=input_ids.device))
    if attention_mask is not None:
        separates &= attention_mask.bool()
    words = before + separates.cumsum(-1)
    starts = torch.where(separates, positions, last).cummax(-1).values
    return words, positions - starts, (words[:, -1:], starts[:, -1:])


def place(config, embeddings, input_ids, attention_mask=None, past=0, word_state=BEFORE_ANY_WORD):
    """Adds where each token stands to its embedding, if the config says so.

    Args:
        config: with `sinusoidal_positions`, `separator_token_ids`, `wave_base`, `wave_size`,
            `hidden_size` and `initializer_range`, as `Seq2SeqConfig` explains them.
        embeddings: (batch, time, hidden_size).
        input_ids: (batch, time), whose embeddings they are.
        attention_mask: (batch, past + time), 0 for padding.
        past: how many tokens were read before.
        word_state: `state` of `count_words`.

    Returns:
        (batch, time, hidden_size); the word state after, the same where words are not counted.
    """
    if not config.sinusoidal_positions:
        return embeddings, word_state
    positions, size = count_positions(embeddings, attention_mask, past), config.hidden_size
    if config.separator_token_ids:
        mask = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :]
        words, within, word_state = count_words(
            input_ids, positions, config.separator_token_ids, mask, word_state
        )
        half = size // 2
        halves = ((words, half), (within, size - half))
        waves = torch.cat([sinusoidal_positions(*one, base=config.wave_base) for one in halves], -1)
    else:
        waves = sinusoidal_positions(positions, size, config.wave_base)
    waves = config.wave_size * config.initializer_range * waves
    return embeddings + waves.to(embeddings.dtype), word_state
