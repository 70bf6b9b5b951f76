"""Any text of your own: a file, a folder of files, or an archive, as a `DatasetDict`.

`load_text("novel.txt")`, `load_text("my_books/")`, `load_text("corpus.tar.xz")`. Plain text
(`.txt`, `.md`, or whatever a single file is called), the same compressed (`.gz`, `.xz`), and
archives of it (`.tar`, `.tar.gz`, `.tgz`, `.tar.xz`). Archives are read in memory: nothing is
unpacked on disk.

Run it to see what it makes of a text: `python data_scripts/text.py novel.txt`.
"""

import argparse
import codecs
import gzip
import io
import logging
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from datasets import Dataset, DatasetDict

from groundup.data_scripts.sources import DataNotFound, describe, log_to_terminal, with_info

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".md")
COMPRESSION_SUFFIXES = (".gz", ".xz")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz")
MIN_DOCUMENTS_TO_HOLD_OUT = 10
PIECE_BYTES = 2**20
# What a damaged zip raises when it is read; RuntimeError where it seems to be encrypted, or to be
# packed in a way that is unknown.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
# Control characters that no text has: all but tab, line ends, form feed, and the escape and
# end-of-file signs of old terminals.
CONTROL_BYTES = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))

# A book of Project Gutenberg starts after one of the first lines (today's, and that of the 1990s),
# and ends before one of the second.
GUTENBERG_MARK = re.compile(
    r"^[ \t]*(?:"
    r"(?P<start>\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^*]*\*\*\*"
    r"|\*END ?\*? ?THE SMALL PRINT!.*\*END\*)"
    r"|(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG[^*]*\*\*\*"
    r"|\**END OF (?:THE |THIS )?PROJECT GUTENBERG.*)"
    r")[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


def load_text(
    path: str | Path, validation_fraction: float = 0.1, gutenberg: bool = False
) -> DatasetDict:
    """Texts of this machine, split into training and validation.

    Ten documents or more: the last of them (`validation_fraction` of their number, at least one)
    are for validation, whole. Fewer: the cut goes through the text, all documents taken together,
    so that validation has the last `validation_fraction` of the characters.

    Args:
        path: a file, an archive, or a folder, which is searched for files in it and below, in the
            order of their names. In a folder or an archive, only `.txt` and `.md` (or the same
            compressed) are read; hidden files and `README` files are left out.
        validation_fraction: more than 0 and less than 1.
        gutenberg: take off the headers and footers of Project Gutenberg (`strip_gutenberg`).

    Returns:
        The splits `train` and `validation`; each row is a document, with the column `text`. Line
        ends are `\\n`.

    Raises:
        DataNotFound: there is no such path.
        ValueError: nothing to read is there, a file is not text, or there is too little to split.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must be in (0, 1)")
    path = Path(path).expanduser()
    documents = list(_read_documents(path))
    if gutenberg:
        documents = [strip_gutenberg(document) for document in documents]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"{path} has no text in it")
    if len(documents) >= MIN_DOCUMENTS_TO_HOLD_OUT:
        held_out = max(1, int(validation_fraction * len(documents)))
        train, validation = documents[:-held_out], documents[-held_out:]
    else:
        train, validation = _cut(documents, validation_fraction)
    if not (train and validation):
        raise ValueError(f"{path} has too little text to split into training and validation")
    dataset = DatasetDict(
        train=Dataset.from_dict({"text": train}),
        validation=Dataset.from_dict({"text": validation}),
    )
    kind = f"folder {path.resolve().name}/" if path.is_dir() else f"file {path.name}"
    return with_info(
        dataset,
        name=path.resolve().name.partition(".")[0],
        source=f"local {kind}",
        license="unknown",
        homepage="",
    )


def _cut(documents: list[str], validation_fraction: float) -> tuple[list[str], list[str]]:
    """Cut all documents, as one text, at a character; the document at the cut is on both sides."""
    remaining = int((1 - validation_fraction) * sum(map(len, documents)))
    train, validation = [], []
    for document in documents:
        train.append(document[:remaining])
        validation.append(document[remaining:])
        remaining = max(0, remaining - len(document))
    return [part for part in train if part], [part for part in validation if part]


def _read_documents(path: Path) -> Iterator[str]:
    """The documents at `path`, in the order of their names; empty files give empty texts."""
    for file in _find_files(path):
        if _is_archive(file.name):
            yield from (text for _, text in read_archive(file))
        else:
            yield read_text(file)


def _find_files(path: Path) -> Iterator[Path]:
    """The archives and documents that `path` is or, if it is a folder, holds."""
    if not path.exists():
        raise DataNotFound(f"{path} does not exist")
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*"), key=lambda file: file.relative_to(path).parts):
        name = PurePosixPath(file.relative_to(path))
        archive = _is_archive(file.name) and not is_left_out(name)
        if file.is_file() and (archive or _is_document(name)):
            yield file


def stream_text(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    """A text of any length in pieces of about a million bytes, cut between words.

    Args:
        path: as for `load_text`. An archive is read a document at a time, all else by pieces, so
            that memory does not grow with the text.
        encoding: of a file that is known; by default each piece is told by `decode`.

    Raises:
        DataNotFound: there is no such path.
        ValueError: a file is not text, or broken; one line.
    """
    for file in _find_files(Path(path).expanduser()):
        if _is_archive(file.name):
            yield from (text for _, text in read_archive(file))
        else:
            for piece in _pieces_of(file):
                yield piece.decode(encoding) if encoding else decode(piece, file.name)


def _pieces_of(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed by its suffix, cut after white space."""
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), Path.open)
    try:
        with opener(path, "rb") as file:
            rest = b""
            while data := file.read(PIECE_BYTES):
                if not rest and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    data += file.read()  # only the beginning says that it is UTF-16: keep it whole
                    yield data
                    return
                data = rest + data
                # Without any white space for so long, a word is cut rather than memory filled.
                cut = max(data.rfind(b" "), data.rfind(b"\n")) + 1 or len(data)
                yield data[:cut]
                rest = data[cut:]
            if rest:
                yield rest
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(f"{path.name} cannot be decompressed: {error}") from error


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_left_out(name: PurePosixPath) -> bool:
    """Hidden files, and the `README` that describes the others."""
    hidden = any(part.startswith(".") for part in name.parts if part != ".")
    return hidden or name.stem.lower() == "readme"


def _is_document(name: PurePosixPath) -> bool:
    if name.suffix.lower() in COMPRESSION_SUFFIXES:
        name = name.with_suffix("")
    return name.suffix.lower() in TEXT_SUFFIXES and not is_left_out(name)


def read_archive(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of the documents in an archive, in the order of their names.

    Raises:
        ValueError: it is broken; one line.
    """
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                if member.isfile() and _is_document(PurePosixPath(member.name)):
                    data = archive.extractfile(member).read()
                    yield member.name, decode(decompress(data, member.name), member.name)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path.name} cannot be read as an archive: {reason}") from error


def read_text(path: str | Path) -> str:
    """The text of one file, decompressed by its suffix, with line ends `\\n`.

    Raises:
        ValueError: it is not text, or broken; one line.
    """
    path = Path(path)
    return decode(decompress(path.read_bytes(), path.name), path.name)


def decompress(data: bytes, name: str) -> bytes:
    """The content of a `.gz` or `.xz` file, told by its name; of any other, what is there.

    Raises:
        ValueError: it is broken; one line.
    """
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(PurePosixPath(name).suffix.lower())
    if opener is None:
        return data
    try:
        with opener(io.BytesIO(data)) as file:
            return file.read()
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(f"{name} cannot be decompressed: {error}") from error


def decode(data: bytes, name: str) -> str:
    """Bytes as text: UTF-8, UTF-16 if it says so (its mark at the start), else Western European.

    Windows' code page 1252 (or, if that has no such letter, Latin-1) is a guess, and is made with
    a warning.

    Args:
        data: the whole file.
        name: the file's name, for messages.

    Raises:
        ValueError: it is not text: it has NUL bytes, or more control characters than letters allow.
    """
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        if _looks_binary(data):
            raise ValueError(f"{name} is not text: it looks like binary data") from None
        logger.warning("%s is not UTF-8: read as Windows-1252 or Latin-1", name)
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    if "\0" in text:
        raise ValueError(f"{name} is not text: it has NUL bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _looks_binary(data: bytes) -> bool:
    """More than 1 % control characters. Compressed data, where all bytes are alike, has 10 %."""
    num_controls = len(data) - len(data.translate(None, CONTROL_BYTES))
    return num_controls > 0.01 * len(data)


def strip_gutenberg(text: str) -> str:
    """What stands between the headers and footers of Project Gutenberg; all, where there are none.

    A file of several books is stripped between them too.
    """
    return "\n\n\n".join(gutenberg_books(text))


def gutenberg_books(text: str) -> list[str]:
    """The books of a file of Project Gutenberg, without what is printed before and after each.

    Both today's marks (`*** START OF THE PROJECT GUTENBERG EBOOK ... ***`) and those of the 1990s
    (`*END*THE SMALL PRINT! ...*END*`, `End of the Project Gutenberg Etext of ...`) are known; a
    text without any is one book. Notes on who transcribed a book stay.
    """
    books, start = [], 0
    for mark in GUTENBERG_MARK.finditer(text):
        if mark["start"]:
            start = mark.end()  # after a start, another start: what was between them was header
        elif start is not None:
            books.append(text[start : mark.start()])
            start = None
    if start is not None:
        books.append(text[start:])
    return [book.strip("\n") for book in books if book.strip()]


def main() -> None:
    """Prints how a text is read and split."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show how a text of your own is read and split.")
    parser.add_argument("path", help="a file, a folder or an archive")
    parser.add_argument("--validation_fraction", type=float, default=0.1)
    parser.add_argument("--gutenberg", action="store_true", help="strip Project Gutenberg's frame")
    arguments = parser.parse_args()
    try:
        dataset = load_text(**vars(arguments))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        num_characters = sum(len(text) for text in rows["text"])
        print(f"{split}: {rows.num_rows} documents, {num_characters:,} characters")
    print(f"\n{dataset['train']['text'][0][:300]}")


if __name__ == "__main__":
    main()
