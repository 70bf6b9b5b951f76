"""Film reviews, whole, for a language model to read.

2,000 reviews of a Usenet archive, 1.5 million words, in lower case and with spaces around
punctuation (Pang and Lee 2004, "A Sentimental Education", polarity dataset 2.0). Whether a review
is kind or not, which the data set tells, is left out: this is text to read, not to judge. The last
hundred of either kind are for validation.

They are looked for in `$GROUNDUP_DATA/movie_reviews/` or in `--data_dir`: `movie_reviews.zip`, as
NLTK has it (`python -m nltk.downloader -d folder movie_reviews`, then `folder/corpora/`), or
`train.parquet` with its texts (columns `text`, and `file`: `neg/cv000_29416.txt`). SST-2 is made of
another collection, `sentence_polarity`.

Run it to see what it holds: `python data_scripts/film_reviews.py`.
"""

import argparse
import contextlib
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from groundup.data_scripts.sources import (
    DataNotFound,
    describe,
    find_local,
    log_to_terminal,
    not_found,
    with_info,
)
from groundup.data_scripts.text import BROKEN_ZIP, decode

NAME = "movie_reviews"
TABLE, ARCHIVE = "train.parquet", "movie_reviews.zip"
LICENSE = "CC BY 4.0 by NLTK's index; cite Pang and Lee (2004)"
HOMEPAGE = "https://www.cs.cornell.edu/people/pabo/movie-review-data"
# Files are called neg/cv000_29416.txt to pos/cv999_13106.txt; the last tenth is usually the test.
HELD_OUT = "/cv9"


def load_film_reviews(data_dir: str | Path | None = None) -> DatasetDict:
    """The reviews, each a row with the column `text`.

    Args:
        data_dir: the folder that holds one of the two files, or the one above it;
            `$GROUNDUP_DATA/movie_reviews` by default.

    Returns:
        The splits `train` and `validation`.

    Raises:
        DataNotFound: it is nowhere, or not in the `data_dir` that was given.
        ValueError: a file is damaged or holds something else.
    """
    path = _find_file(data_dir)
    read = _read_archive if path.name == ARCHIVE else _read_table
    splits = {"train": [], "validation": []}
    for file, text in read(path):
        splits["validation" if HELD_OUT in file else "train"].append(text)
    if not all(splits.values()):
        raise ValueError(f"{path.name} must have reviews of files cv000 to cv999")
    dataset = DatasetDict(
        {split: Dataset.from_dict({"text": texts}) for split, texts in splits.items()}
    )
    return with_info(
        dataset, name=NAME, source=f"local file {path.name}", license=LICENSE, homepage=HOMEPAGE
    )


def _find_file(data_dir: str | Path | None) -> Path:
    """The table or the archive, whichever is there."""
    for name in (TABLE, ARCHIVE):
        with contextlib.suppress(DataNotFound):  # which would name this file alone
            if (folder := find_local(NAME, [name], data_dir)) is not None:
                return folder / name
    if data_dir is not None:
        raise DataNotFound(f"{data_dir} holds no {TABLE} or {ARCHIVE}, nor does its {NAME}/")
    raise not_found(NAME, [f"{TABLE} or {ARCHIVE}"])


def _read_archive(path: Path) -> list[tuple[str, str]]:
    """(name, text) of each review, in the order of their names."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
            return [(name, decode(archive.read(name), name)) for name in names]
    except BROKEN_ZIP as error:
        raise ValueError(f"{path.name} is damaged, or no archive: {error}") from error


def _read_table(path: Path) -> list[tuple[str, str]]:
    try:
        table = pyarrow.parquet.read_table(path, columns=["file", "text"])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as reviews in Parquet: {error}") from error
    if any(column.type != pyarrow.string() or column.null_count for column in table.columns):
        raise ValueError(f"{path.name} must have a file and a text, both strings, in each row")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what the film reviews hold.")
    parser.add_argument("--data_dir", help="the folder that holds its file")
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
