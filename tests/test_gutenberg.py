"""Books of Project Gutenberg: two collections, their books told apart, one of each held out."""

import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from groundup.data_scripts.gutenberg import DICKENS, DICKENS_FILE, OTHERS_FILE, load_gutenberg
from groundup.data_scripts.sources import DataNotFound, describe

DATA = os.environ.get("GROUNDUP_DATA")
HEADER = "Etext\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n"
OTHERS = ("carroll-alice", "milton-paradise", *(f"other-{i:02}" for i in range(15)))


def dickens(titles) -> bytes:
    """A file as the real one: DOS line ends and letters, headers, who typed it, trailing blanks."""
    books = [
        f"{HEADER}\n\n{title}\nScanned by a@b.c\n\n\n\n{title} in a café \nby night.\n"
        f"End of The Project Gutenberg Etext of {title}\n"
        for title in titles
    ]
    return lzma.compress("".join(books).replace("\n", "\r\n").encode("cp437"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / DICKENS_FILE).write_bytes(dickens(DICKENS))
    with tarfile.open(tmp_path / OTHERS_FILE, "w:xz") as archive:
        for name in OTHERS:
            info = tarfile.TarInfo(f"{name}.txt")
            content = f"The text of {name}".encode()
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tmp_path


def test_books_are_told_apart_and_tidied(folder):
    dataset = load_gutenberg("dickens", folder)
    assert dataset["validation"]["title"] == ["A Christmas Carol"]
    assert dataset["validation"]["text"] == ["A Christmas Carol in a café\nby night."]
    assert dataset["train"]["title"] == [title for title in DICKENS if title != "A Christmas Carol"]
    info = describe(dataset)
    assert info["name"] == "gutenberg-dickens" and str(folder) not in info["source"]


def test_collections(folder):
    others, both = load_gutenberg("others", folder), load_gutenberg("all", folder)
    assert others["train"]["text"][0] == "The text of milton-paradise"
    assert others["validation"]["title"] == ["carroll-alice"]
    assert both["train"].num_rows == len(DICKENS) - 1 + len(OTHERS) - 1
    assert both["validation"]["title"] == ["A Christmas Carol", "carroll-alice"]


def test_what_is_wrong_is_said(folder, monkeypatch):
    with pytest.raises(ValueError, match="dickens, others, all"):
        load_gutenberg("homer", folder)
    (folder / DICKENS_FILE).write_bytes(dickens(DICKENS[:3]))
    with pytest.raises(ValueError, match="holds 3 books; it should hold 14"):
        load_gutenberg("dickens", folder)
    (folder / DICKENS_FILE).write_bytes(b"no archive")
    with pytest.raises(ValueError, match=f"{DICKENS_FILE} cannot be decompressed"):
        load_gutenberg("dickens", folder)
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    with pytest.raises(DataNotFound, match=DICKENS_FILE):
        load_gutenberg("dickens")


@pytest.mark.skipif(
    not (DATA and Path(DATA, "gutenberg", DICKENS_FILE).is_file()),
    reason="needs $GROUNDUP_DATA/gutenberg",
)
def test_the_real_books():
    dataset = load_gutenberg()
    assert dataset["train"].num_rows == 29 and dataset["validation"].num_rows == 2
    text = "".join(dataset["train"]["text"])
    assert 16_000_000 < len(text) < 18_000_000
    assert "Project Gutenberg Etext" not in text and "\r" not in text
    assert dataset["validation"]["text"][0].startswith("A CHRISTMAS CAROL")
