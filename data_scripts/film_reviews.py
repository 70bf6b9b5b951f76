"""Film reviews, whole, for a language model that is to judge sentences of such reviews.

2,000 reviews of a Usenet archive, 1.5 million words, in lower case and with spaces around
punctuation (Pang and Lee 2004, "A Sentimental Education", polarity dataset 2.0). Whether a review
is kind or not, which the data set tells, is left out: this is text to read, not to judge. The last
hundred of either kind are for validation.

They are looked for in `$GROUNDUP_DATA/movie_reviews/` or in `--data_dir` (`train.parquet`, with the
columns `text` and `file`).

Run it to see what it holds: `python data_scripts/film_reviews.py`.
"""

import argparse
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from groundup.data_scripts.sources import (
    describe,
    find_local,
    log_to_terminal,
    not_found,
    with_info,
)

NAME = "movie_reviews"
FILE = "train.parquet"
LICENSE = "CC BY 4.0"
HOMEPAGE = "https://www.cs.cornell.edu/people/pabo/movie-review-data"
# Files are called neg/cv000_29416.txt to pos/cv999_13106.txt; the last tenth is usually the test.
HELD_OUT = "/cv9"


def load_film_reviews(data_dir: str | Path | None = None) -> DatasetDict:
    """The reviews, each a row with the column `text`.

    Args:
        data_dir: the folder that holds `train.parquet`, or the one above it;
            `$GROUNDUP_DATA/movie_reviews` by default.

    Returns:
        The splits `train` and `validation`.

    Raises:
        DataNotFound: it is nowhere, or not in the `data_dir` that was given.
        ValueError: the file is damaged or holds something else.
    """
    folder = find_local(NAME, [FILE], data_dir)
    if folder is None:
        raise not_found(NAME, [FILE])
    try:
        table = pyarrow.parquet.read_table(folder / FILE, columns=["text", "file"])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{FILE} cannot be read as reviews in Parquet: {error}") from error
    splits = {"train": [], "validation": []}
    for row in table.to_pylist():
        splits["validation" if HELD_OUT in row["file"] else "train"].append(row["text"])
    if not all(splits.values()):
        raise ValueError(f"{FILE} must have reviews of files cv000 to cv999")
    dataset = DatasetDict(
        {split: Dataset.from_dict({"text": texts}) for split, texts in splits.items()}
    )
    return with_info(
        dataset, name=NAME, source=f"local file {FILE}", license=LICENSE, homepage=HOMEPAGE
    )


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what the film reviews hold.")
    parser.add_argument("--data_dir", help="the folder that holds train.parquet")
    try:
        dataset = load_film_reviews(parser.parse_args().data_dir)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        print(f"{split}: {len(rows):,} reviews, {sum(map(len, rows['text'])):,} characters")
    print(f"\n{dataset['train']['text'][0][:300]}")


if __name__ == "__main__":
    main()
