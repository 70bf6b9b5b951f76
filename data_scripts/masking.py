"""Texts with blanks: which tokens a masked-language model has to guess, and what stands there.

    marley was [MASK] : to begin with .          ->  dead

Of each block, 15 % of the tokens are *chosen*, unless another share is asked for: the loss is over
these (Devlin et al. 2018, "BERT"; Wettig et al. 2022, "Should you mask 15%?", for more).
A model that finds [MASK] at every chosen place would learn that nothing is to be known of the
others, and never meets [MASK] when it is used. So of the chosen, 80 % become [MASK], 10 % become
any token, and 10 % stay. With whole words, a word is chosen with all of its pieces: the rest of a
word gives a piece away (Devlin's note of 2019, "whole word masking").

**Every draw is a function of (seed, epoch, block)**: a resumed run meets the same blanks again, and
an evaluation those of any other, whatever the size of its batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from groundup.data_scripts.tokenization import IGNORED_LABEL

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1  # share of all, unless another is given; of the chosen


@dataclass(frozen=True)
class Specials:
    """The ids that stand for something else than text.

    Args:
        cls, sep: before and after a block.
        mask: in place of what is to be guessed.
        first_word: the lowest id that stands for text; all above it do.
        vocab_size: how many ids there are.
    """

    cls: int
    sep: int
    mask: int
    first_word: int
    vocab_size: int


def check_blank_share(share: float) -> None:
    """Raises ValueError for a share of blanks that cannot be; of less, whole batches have none."""
    if not 0.01 <= share < 1:
        raise ValueError(f"blank_share is {share}; give 0.01 or more, and less than 1")


class MaskedBlocks(torch.utils.data.Dataset):
    """A row of tokens in blocks with blanks: `[CLS]`, block_size - 2 tokens, `[SEP]`.

    A block is `{"input_ids": (block_size,), "labels": (block_size,)}`, both int64; labels are -100
    where nothing is to be guessed. What is left over after the last whole block is left out.

    An index is a block, or a pair (epoch, block), as `EpochSampler` gives it; of epoch 0 else.

    Args:
        ids: (tokens,), of any integer type; may be memory-mapped.
        specials: what is not text.
        block_size: tokens of a block, with the two around it.
        seed: of the blanks.
        goes_on: (tokens,), bool, True for a piece that goes on with the word before it: whole words
            are chosen then. None: each token by itself.
        blank_share: share of the tokens that are to be guessed, at least 0.01.

    Raises:
        ValueError: fewer tokens than one block has, or a share that cannot be.
    """

    def __init__(
        self,
        ids: np.ndarray,
        specials: Specials,
        block_size: int,
        seed: int,
        goes_on: np.ndarray | None = None,
        blank_share: float = CHOSEN,
    ):
        check_blank_share(blank_share)
        if block_size < 3:
            raise ValueError(f"block_size is {block_size}; [CLS], a token and [SEP] are 3")
        self.length = block_size - 2
        if len(ids) < self.length:
            raise ValueError(
                f"the text has {len(ids)} tokens, and a block {self.length}: give more text or "
                f"smaller blocks (--max_position_embeddings)"
            )
        self.ids, self.specials, self.seed, self.goes_on = ids, specials, seed, goes_on
        self.blank_share = blank_share
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the sampler's next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, index) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence) -> list[dict[str, torch.Tensor]]:
        """The blocks of these indices, one after the other."""
        pairs = np.asarray(indices, dtype=np.int64)  # (b,), or (b, 2) with epochs
        epochs, blocks = pairs.T if pairs.ndim == 2 else (np.zeros_like(pairs), pairs)
        if blocks.min() < 0 or blocks.max() >= len(self):
            raise IndexError(f"a block's index must be from 0 to {len(self) - 1}: {indices}")
        draws = [
            np.random.default_rng([self.seed, *pair]) for pair in zip(epochs, blocks, strict=True)
        ]
        # Three numbers in [0, 1) for each token.
        chance, kind, other = np.stack([draw.random((3, self.length)) for draw in draws], axis=1)
        places = blocks[:, None] * self.length + np.arange(self.length)  # (b, length)
        tokens = self.ids[places].astype(np.int64)
        chosen = self._choose(chance, places) & (tokens >= self.specials.first_word)
        labels = np.where(chosen, tokens, IGNORED_LABEL)
        tokens = self._blank_out(kind, other, tokens, chosen)
        s = self.specials
        tokens = np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), (s.cls, s.sep)))
        labels = np.pad(labels, ((0, 0), (1, 1)), constant_values=IGNORED_LABEL)
        return [
            {"input_ids": block, "labels": block_labels}
            for block, block_labels in zip(
                torch.from_numpy(tokens), torch.from_numpy(labels), strict=True
            )
        ]

    def _choose(self, chance: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(b, length), bool: the tokens to be guessed."""
        if self.goes_on is not None:
            # Each piece takes the draw of the word's first piece (or of the first in this block).
            first = ~self.goes_on[places]
            first[:, 0] = True
            start = np.maximum.accumulate(np.where(first, np.arange(self.length), 0), axis=1)
            chance = np.take_along_axis(chance, start, axis=1)
        return chance < self.blank_share

    def _blank_out(self, kind, other, tokens: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Of the chosen, 80 % as [MASK], 10 % as any token, 10 % as they are."""
        first, end = self.specials.first_word, self.specials.vocab_size
        any_token = first + (other * (end - first)).astype(np.int64)
        tokens = np.where(chosen & (kind < MASKED), self.specials.mask, tokens)
        return np.where(chosen & (kind >= MASKED) & (kind < MASKED + RANDOM), any_token, tokens)
