"""CIFAR-100: like CIFAR-10, but with 100 classes of 600 photographs each, in 20 groups of five.

60,000 colour photographs of 32 x 32 pixels, 50,000 of them for training and 10,000 for testing;
made by Alex Krizhevsky ("Learning Multiple Layers of Features from Tiny Images", 2009), who states
no licence. No picture of CIFAR-10's classes is in it.

It is looked for in `--data_dir` or `$GROUNDUP_DATA/cifar100/` (`train.parquet`, `test.parquet`),
then on the Hub (`uoft-cs/cifar100`). No Python package carries it.

Run it to see what it holds: `python data_scripts/cifar100.py`.
"""

from pathlib import Path

from datasets import DatasetDict

from groundup.data_scripts.cifar10 import load_cifar, show

NAME = "cifar100"
HUB_ID = "uoft-cs/cifar100"
HUB_FOLDER = "cifar100"
NUM_CLASSES = 100


def load_cifar100(data_dir: str | Path | None = None) -> DatasetDict:
    """CIFAR-100 as pictures and named classes.

    Args:
        data_dir: the folder that holds `train.parquet` and `test.parquet`. By default, the places
            that the description of this file names are searched.

    Returns:
        The splits `train` (50,000 rows) and `test` (10,000), with the columns `image` (RGB,
        32 x 32), `label` (a `ClassLabel` that knows the 100 names) and, from the Hub,
        `coarse_label` (the 20 groups).

    Raises:
        DataNotFound: it is nowhere, or not in the `data_dir` that was given.
        ValueError: a file is damaged, or holds something else.
    """
    return load_cifar(NAME, HUB_ID, HUB_FOLDER, NUM_CLASSES, data_dir)


if __name__ == "__main__":
    show(load_cifar100, "Show what CIFAR-100 holds.")
