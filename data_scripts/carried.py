"""Blocks in reading order, for a model that carries its state from one to the next.

A text is cut into so many parts, which are read side by side, as the rows of a batch. Each batch
goes on where the one before it ended:

    text   a b c d e f g h i j k l          batch 1   a b c     batch 2   d e f
    two parts, blocks of three                        g h i               j k l

A block is `{"input_ids": (block_size,), "shift_labels": (block_size,), "begins": ()}`: tokens, the
token that follows each, and whether the state is to be a fresh one here.
"""

from collections.abc import Iterator

import numpy as np
import torch

from groundup.data_scripts.tokenization import END_OF_TEXT_ID, IGNORED_LABEL


class CarriedStream(torch.utils.data.IterableDataset):
    """Endless passes over a text, for training.

    The text is taken as a ring, on which each pass begins somewhere else: so the cuts, and with
    them the places where a state is fresh, are others each time. What is left over after the last
    whole blocks is left out of that pass.

    Args:
        ids: (tokens,), of any integer type.
        block_size: tokens of a block.
        num_streams: parts that this process reads side by side: the size of its batches.
        seed: of the places where passes begin.
        process_index, num_processes: which of how many shares of the parts this is.

    Raises:
        ValueError: a size below 1, or a text too short for so many parts of one block.
    """

    def __init__(
        self,
        ids: np.ndarray,
        block_size: int,
        num_streams: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        check_sizes(block_size, num_streams)
        self.ids, self.block_size, self.num_streams, self.seed = ids, block_size, num_streams, seed
        self.first_stream = process_index * num_streams
        total = num_processes * num_streams
        self.blocks = len(ids) // (total * block_size)  # of each stream, in a pass
        if self.blocks == 0:
            raise ValueError(
                f"the training text has {len(ids)} tokens, too few for {total} streams of at least "
                f"one block of {block_size}: give more text, a smaller --block_size or a smaller "
                f"--per_device_train_batch_size"
            )
        self.place = {"pass": 0, "taken": 0}  # of this pass, how many of this process's blocks

    def state_dict(self) -> dict:
        """The place after the last block that was taken."""
        return dict(self.place)

    def load_state_dict(self, place: dict) -> None:
        """Go on from a place that `state_dict` gave; the text must still be the same."""
        self.place = dict(place)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        length = self.blocks * self.block_size
        while True:
            number = self.place["pass"]
            start = int(np.random.default_rng([self.seed, number]).integers(len(self.ids)))
            while self.place["taken"] < self.blocks * self.num_streams:
                block, stream = divmod(self.place["taken"], self.num_streams)
                first = start + (self.first_stream + stream) * length + block * self.block_size
                positions = first + np.arange(self.block_size + 1)
                tokens = self.ids[positions % len(self.ids)].astype(np.int64)
                self.place["taken"] += 1
                yield _block(tokens[:-1], tokens[1:], begins=block == 0)
            self.place = {"pass": number + 1, "taken": 0}


class CarriedBlocks(torch.utils.data.Dataset):
    """One pass over a text, for evaluation: each token but the first is predicted exactly once.

    Block i is the one at place `i // num_streams` of part `i % num_streams`, so that batches of
    `num_streams`, in this order, are what is described above. (The same holds for more than one
    process, where each takes every n-th batch and `num_streams` is that of all together.) Each part
    begins with a fresh state, so the fewer parts, the better the score; one is exact.

    Args:
        ids: (tokens,), of any integer type.
        block_size: tokens of a block; changes no score.
        num_streams: parts.

    Raises:
        ValueError: a size below 1, or fewer than two tokens.
    """

    def __init__(self, ids: np.ndarray, block_size: int, num_streams: int):
        check_sizes(block_size, num_streams)
        if len(ids) < 2:
            raise ValueError(f"the text has {len(ids)} tokens: nothing can be predicted")
        self.ids, self.block_size, self.num_streams = ids, block_size, num_streams
        self.length = -(-(len(ids) - 1) // num_streams)  # predictions of a part, rounded up

    def __len__(self) -> int:
        return self.num_streams * -(-self.length // self.block_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block, stream = divmod(index, self.num_streams)
        within = block * self.block_size + np.arange(self.block_size)
        positions = stream * self.length + within
        last = len(self.ids) - 1
        outside = (within >= self.length) | (positions >= last)  # (block_size,): padding
        tokens = self.ids[np.minimum(positions, last)].astype(np.int64)
        following = self.ids[np.minimum(positions + 1, last)].astype(np.int64)
        tokens[outside], following[outside] = END_OF_TEXT_ID, IGNORED_LABEL
        return _block(tokens, following, begins=block == 0)


def check_sizes(block_size: int, num_streams: int) -> None:
    """Raises ValueError where there would be nothing in a block or in a batch."""
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; a block has at least 1 token")
    if num_streams < 1:
        raise ValueError(f"the batch size is {num_streams}; there must be at least 1 stream")


def _block(tokens: np.ndarray, following: np.ndarray, begins: bool) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.from_numpy(tokens),
        "shift_labels": torch.from_numpy(following),
        "begins": torch.tensor(begins),
    }
