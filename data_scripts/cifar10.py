"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes, 6,000 of each.

airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck. Made by Alex Krizhevsky
("Learning Multiple Layers of Features from Tiny Images", 2009), who states no licence: it is
offered for research, and he asks to be cited. 50,000 pictures are for training, 10,000 for testing;
who needs validation data takes it from the training pictures (`images.held_out`).

It is looked for in `--data_dir` or `$GROUNDUP_DATA/cifar10/` (`train.parquet`, `test.parquet`),
then on the Hub (`uoft-cs/cifar10`). No Python package carries it. Local files may hold the pictures
in another order, or compressed in another way (without loss): then the fingerprint differs.

Run it to see what it holds: `python data_scripts/cifar10.py`.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Image

from groundup.data_scripts.sources import (
    describe,
    find_local,
    find_on_hub,
    log_to_terminal,
    not_found,
    with_info,
)

logger = logging.getLogger(__name__)

NAME = "cifar10"
HUB_ID = "uoft-cs/cifar10"
HUB_FOLDER = "plain_text"
NUM_CLASSES = 10
NUM_ROWS = {"train": 50_000, "test": 10_000}
FILES = [f"{split}.parquet" for split in NUM_ROWS]
RENAMED = {"img": "image", "fine_label": "label"}  # the Hub's names -> those of all data scripts


def load_cifar10(data_dir: str | Path | None = None) -> DatasetDict:
    """CIFAR-10 as pictures and named classes.

    Args:
        data_dir: the folder that holds `train.parquet` and `test.parquet`. By default, the places
            that the description of this file names are searched.

    Returns:
        The splits `train` (50,000 rows) and `test` (10,000), with the columns `image` (RGB,
        32 x 32) and `label` (a `ClassLabel` that knows the ten names).

    Raises:
        DataNotFound: it is nowhere, or not in the `data_dir` that was given.
        ValueError: a file is damaged, or holds something else.
    """
    return load_cifar(NAME, HUB_ID, HUB_FOLDER, NUM_CLASSES, data_dir)


def load_cifar(
    name: str, hub_id: str, hub_folder: str, num_classes: int, data_dir: str | Path | None
) -> DatasetDict:
    """What CIFAR-10 and CIFAR-100 share: both are two Parquet files, from the folder or the Hub."""
    if folder := find_local(name, FILES, data_dir):
        paths, source = [folder / file for file in FILES], f"local files {', '.join(FILES)}"
    else:
        hub_files = [f"{hub_folder}/{split}-00000-of-00001.parquet" for split in NUM_ROWS]
        paths, source = find_on_hub(hub_id, hub_files), f"Hub {hub_id}"
    if paths is None:
        raise not_found(name, FILES, hub=hub_id)
    dataset = DatasetDict(
        {
            split: _read_split(path, split, num_classes)
            for split, path in zip(NUM_ROWS, paths, strict=True)
        }
    )
    return with_info(
        dataset,
        name=name,
        source=source,
        license="none stated; cite Krizhevsky (2009)",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    )


def _read_split(path: Path, split: str, num_classes: int) -> Dataset:
    """One Parquet file in memory: `datasets` would copy it into its cache to read it."""
    try:
        rows = Dataset(pyarrow.parquet.read_table(path))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path.name} cannot be read as Parquet: {reason}") from error
    rows = rows.rename_columns({k: v for k, v in RENAMED.items() if k in rows.column_names})
    label = rows.features.get("label")
    if not isinstance(rows.features.get("image"), Image) or not isinstance(label, ClassLabel):
        raise ValueError(
            f"{path.name} must have the columns image (or img) and label (or fine_label), "
            f"described as Image and ClassLabel; it has {', '.join(rows.column_names)}"
        )
    if label.num_classes != num_classes:
        raise ValueError(f"{path.name} has {label.num_classes} classes instead of {num_classes}")
    if rows.num_rows != NUM_ROWS[split]:
        logger.warning(
            "%s is not the whole split: %d pictures instead of %d",
            path.name,
            rows.num_rows,
            NUM_ROWS[split],
        )
    return rows


def show(load: Callable, description: str) -> None:
    """What both scripts do when they run by themselves: print what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data_dir", help=f"the folder that holds {', '.join(FILES)}")
    try:
        dataset = load(parser.parse_args().data_dir)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        counts = Counter(rows["label"])
        print(f"{split}: {rows.num_rows:,} pictures; columns {', '.join(rows.column_names)}")
        for label, class_name in enumerate(rows.features["label"].names):
            print(f"    {label:3} {class_name:15} {counts[label]:6,}")


if __name__ == "__main__":
    show(load_cifar10, "Show what CIFAR-10 holds.")
