"""Books of Project Gutenberg: fourteen of Charles Dickens, and seventeen by eleven others.

    MARLEY was dead: to begin with. There is no doubt
    whatever about that.

Dickens (9.8 million characters) comes from the Silesia corpus, a set of files for comparing
compressors; the seventeen (7.4 million) are those of NLTK's Gutenberg corpus without the Bible. The
texts are in the public domain. Each row is a book. Two are for validation, whole: *A Christmas
Carol* of the one collection, *Alice's Adventures in Wonderland* of the other.

They are looked for in `--data_dir` or `$GROUNDUP_DATA/gutenberg/`. Neither the Hub nor a package
has these editions; any other book does as well by `train/gpt.py --text book.txt`.

Run it to see what it holds: `python data_scripts/gutenberg.py`.
"""

import argparse
import re
from pathlib import Path

from datasets import Dataset, DatasetDict

from groundup.data_scripts.sources import (
    describe,
    find_local,
    log_to_terminal,
    not_found,
    with_info,
)
from groundup.data_scripts.text import decompress, gutenberg_books, read_archive

NAME = "gutenberg"
DICKENS_FILE, OTHERS_FILE = "dickens.txt.xz", "nltk_gutenberg_17_books.tar.xz"
FILES = {"dickens": [DICKENS_FILE], "others": [OTHERS_FILE], "all": [DICKENS_FILE, OTHERS_FILE]}
# In the order in which they stand in the file.
DICKENS = (
    "A Child's History of England",
    "Contributions to All the Year Round",
    "American Notes",
    "The Battle of Life",
    "Bleak House",
    "A Christmas Carol",
    "David Copperfield",
    "Dombey and Son",
    "Doctor Marigold",
    "Going into Society",
    "George Silverman's Explanation",
    "Barnaby Rudge",
    "The Chimes",
    "The Cricket on the Hearth",
)
NUM_OTHERS = 17
HELD_OUT = ("A Christmas Carol", "carroll-alice")


def load_gutenberg(collection: str = "all", data_dir: str | Path | None = None) -> DatasetDict:
    """The books, each a row with the columns `title` and `text`.

    Args:
        collection: "dickens", "others" or "all".
        data_dir: the folder that holds the files; `$GROUNDUP_DATA/gutenberg` by default.

    Returns:
        The splits `train` and `validation` (the books of `HELD_OUT`). Line ends are `\\n`, no line
        ends with spaces.

    Raises:
        DataNotFound: the files are nowhere.
        ValueError: there is no such collection, or a file is not what it should be.
    """
    if collection not in FILES:
        raise ValueError(f"no collection {collection!r}; there are: {', '.join(FILES)}")
    folder = find_local(NAME, FILES[collection], data_dir)
    if folder is None:
        raise not_found(NAME, FILES[collection])
    books = []
    if collection in ("dickens", "all"):
        books += _read_dickens(folder / DICKENS_FILE)
    if collection in ("others", "all"):
        documents = read_archive(folder / OTHERS_FILE)
        others = [(Path(name).stem, text) for name, text in documents]
        if len(others) != NUM_OTHERS:
            raise ValueError(
                f"{OTHERS_FILE} holds {len(others)} books; it should hold {NUM_OTHERS}"
            )
        books += others
    rows = [{"title": title, "text": _tidy(text)} for title, text in books]
    dataset = DatasetDict(
        train=Dataset.from_list([row for row in rows if row["title"] not in HELD_OUT]),
        validation=Dataset.from_list([row for row in rows if row["title"] in HELD_OUT]),
    )
    return with_info(
        dataset,
        name=NAME if collection == "all" else f"{NAME}-{collection}",
        source=f"local file {', '.join(FILES[collection])}",
        license="public domain",
        homepage="https://www.gutenberg.org",
    )


def _read_dickens(path: Path) -> list[tuple[str, str]]:
    # The books were typed under DOS: its code page 437 has the eight letters that are not ASCII.
    text = decompress(path.read_bytes(), path.name).decode("cp437").replace("\r\n", "\n")
    books = gutenberg_books(text)
    if len(books) != len(DICKENS):
        raise ValueError(f"{path.name} holds {len(books)} books; it should hold {len(DICKENS)}")
    return list(zip(DICKENS, map(_without_transcriber, books), strict=True))


def _without_transcriber(book: str) -> str:
    """A book without the paragraph before it that says who typed it, by e-mail address."""
    first, blank, rest = book.partition("\n\n\n")
    return rest.lstrip("\n") if blank and "@" in first else book


def _tidy(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what the books hold.")
    parser.add_argument("--collection", default="all", help=", ".join(FILES))
    parser.add_argument("--data_dir", help="the folder that holds the files")
    try:
        dataset = load_gutenberg(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        for title, text in zip(rows["title"], rows["text"], strict=True):
            print(f"{split}: {title}, {len(text):,} characters")
    print(f"\n{dataset['validation']['text'][0][:300]}")


if __name__ == "__main__":
    main()
