"""What data sets of pairs share: a text to read (`source`) and the text to write (`target`)."""

from collections.abc import Iterator

import torch
from datasets import Dataset, DatasetDict
from transformers.trainer_pt_utils import get_length_grouped_indices

from groundup.data_scripts.sources import describe


def make_pairs(splits: dict[str, list[tuple[str, str]]]) -> DatasetDict:
    """Pairs of texts as a data set with the columns `source` and `target`."""
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"source": [source for source, _ in pairs], "target": [goal for _, goal in pairs]}
            )
            for split, pairs in splits.items()
        }
    )


def show_pairs(dataset: DatasetDict) -> None:
    """Prints where a data set comes from, and the first and the last pair of each split."""
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        print(f"{split}: {len(rows):,} pairs")
        for row in (rows[0], rows[-1]):
            print(f"    {row['source']}\n    {row['target']}")


class LengthSampler(torch.utils.data.Sampler):
    """Batches of rows of about one length, so that little is padding; another order each epoch.

    transformers groups rows by length too, but with the run's own random numbers, so that a run
    that is resumed inside an epoch goes on in another order; and its batches come the longest
    first, fifty at a time. Here the order depends on nothing but seed and epoch, and the batches
    are shuffled.

    Args:
        lengths: of each row.
        batch_size: rows of a batch; the last one may have fewer.
        seed: of the orders.
        trainer: whose `state` says which epoch it is, also in a run that is resumed.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, trainer):
        self.lengths, self.batch_size = list(lengths), batch_size
        self.seed, self.trainer = seed, trainer

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        epoch = int(self.trainer.state.epoch or 0)
        generator = torch.Generator().manual_seed(2**20 * self.seed + epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        whole = len(rows) // self.batch_size
        for batch in torch.randperm(whole, generator=generator).tolist():
            yield from rows[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from rows[whole * self.batch_size :]
