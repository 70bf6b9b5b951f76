"""English to learn a language from: books, Wikipedia and the Brown corpus, as documents.

The same three folders as in `words.py`, but whole texts with their punctuation rather than running
words: the books of `gutenberg.py` (without the headers of Project Gutenberg; *A Christmas Carol*
and *Alice's Adventures in Wonderland* are for validation), 30 articles and 15,000 sentences of
Wikipedia, and the 500 samples of the Brown corpus. 28 million characters in all.

They are looked for in `$GROUNDUP_DATA/` or in `--data_dir`, the folder above them. Neither the Hub
nor a package has this collection; any other text does as well by `train/bert.py --text corpus/`.

Run it to see what it holds: `python data_scripts/english.py`.
"""

import argparse
from itertools import groupby
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets

from groundup.data_scripts.gutenberg import load_gutenberg
from groundup.data_scripts.sources import (
    describe,
    find_local,
    log_to_terminal,
    not_found,
    with_info,
)
from groundup.data_scripts.text import read_text
from groundup.data_scripts.words import BROWN_FILE, FOLDERS, LICENSE, NAME, WIKIPEDIA_FILES


def load_english(data_dir: str | Path | None = None) -> DatasetDict:
    """The documents, each a row with the column `text`.

    Args:
        data_dir: the folder that holds `gutenberg`, `wikipedia` and `brown`; `$GROUNDUP_DATA` by
            default.

    Returns:
        The splits `train` and `validation` (two books).

    Raises:
        DataNotFound: one of the three is nowhere.
    """
    folders = {}
    for name in ("wikipedia", "brown"):
        folders[name] = find_local(name, FOLDERS[name], data_dir)
        if folders[name] is None:
            raise not_found(name, FOLDERS[name])
    books = load_gutenberg("all", data_dir).select_columns("text")
    documents = [*_read_wikipedia(folders["wikipedia"]), *_read_brown(folders["brown"])]
    others = Dataset.from_dict({"text": documents}, features=books["train"].features)
    dataset = DatasetDict(
        train=concatenate_datasets([books["train"], others]), validation=books["validation"]
    )
    return with_info(
        dataset,
        name=NAME,
        source=f"local folders {', '.join(FOLDERS)}",
        license=LICENSE,
        homepage="https://www.gutenberg.org",
    )


def _read_wikipedia(folder: Path) -> list[str]:
    """An article a line; and the sentences, which have nothing to do with each other, as one."""
    articles, sentences = (read_text(folder / name) for name in WIKIPEDIA_FILES)
    return [*articles.strip().split("\n"), sentences]


def _read_brown(folder: Path) -> list[str]:
    """A sample a document; its sentences one after the other."""
    lines = [line.split("\t", 1) for line in read_text(folder / BROWN_FILE).strip().split("\n")]
    return [
        "\n".join(sentence for _, sentence in sample)
        for _, sample in groupby(lines, key=lambda line: line[0])
    ]


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what the English corpus holds.")
    parser.add_argument("--data_dir", help="the folder that holds gutenberg, wikipedia and brown")
    try:
        dataset = load_english(parser.parse_args().data_dir)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        print(f"{split}: {len(rows):,} documents, {sum(map(len, rows['text'])):,} characters")


if __name__ == "__main__":
    main()
