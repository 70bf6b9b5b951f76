"""Text too long for memory: streamed by `datasets`, packed into blocks, shared by processes.

`open_stream("corpus/")` opens text, JSON-lines or Parquet files of this machine, or a data set on
the Hub, of which nothing is downloaded before it is read. `PackedStream` makes of it what a
language model trains on:

    documents -> one row of tokens, <|endoftext|> before each document -> blocks, without padding

Who reads what. Of n processes, process i has the documents i, i + n, i + 2n, ... of the stream, and
packs them by itself: each document goes to exactly one process. All processes read all files; they
tokenise, which is what costs time, only what is their own. (To give each its own files instead is
cheaper to read, but where files differ in size, one process would see its text many times over.)

The end. There is none: a process that has had all of its documents begins the next pass over them,
and the tokens that are too few for a block become the beginning of its first. So all processes make
the same number of steps, no token is lost or had twice in a pass, and nothing is padded. As their
documents are not equally long, they do not begin the next pass at the same step.

The place. `state_dict` says where the stream stands: after the last block that was taken from it.
It is small, since it names the place where the present window of text begins: to go on from there
costs reading the present file up to it, and tokenising one window.

Run it to see what it makes of a corpus: `python data_scripts/streaming.py corpus/`.
"""

import argparse
import glob
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from huggingface_hub import HfApi

from groundup.data_scripts.sources import (
    HUB_ERRORS,
    HUB_TIMEOUT,
    DataNotFound,
    describe,
    log_to_terminal,
    with_info,
)
from groundup.data_scripts.text import ARCHIVE_SUFFIXES, COMPRESSION_SUFFIXES, is_left_out
from groundup.data_scripts.tokenization import encode_documents

BUILDERS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# As in `load_text`, a text file is one document. (The mark that some editors begin it with is not.)
OPTIONS = {"text": {"sample_by": "document", "encoding": "utf-8-sig"}}
PACKED_BADLY = (EOFError, zlib.error, lzma.LZMAError)
HEAD_CHARACTERS = 2**23  # from so much text a tokenizer is made
WINDOW_CHARACTERS = 2**22  # so much is tokenised at once: about a million tokens, some 50 MB


def open_stream(
    source: str, config: str | None = None, validation_documents: int = 100
) -> tuple[IterableDataset, DatasetDict, dict[str, str]]:
    """A text collection of any size: its first documents in memory, the others as a stream.

    Args:
        source: a file, a folder, a glob pattern, or the Hub name of a data set. In a folder, all
            files in it and below whose names end in `.txt` and `.md` (a file is a document),
            `.jsonl` and `.json` (a line is a document, its text under `text`) or `.parquet` (a row,
            in the column `text`), also compressed (`.gz`, `.xz`), but all of one kind.
        config: which configuration of a data set on the Hub.
        validation_documents: so many, the first, are for validation.

    Returns:
        - the documents to train on, each with the column `text`: all but the first;
        - in memory, `validation`: the first documents, and `train`: the beginning of those to train
          on, to make a tokenizer from;
        - what `describe` says of them. The fingerprint is made of these two and of the files' names
          (on the Hub: the commit), not of content that nobody has read yet.

    Raises:
        DataNotFound: there is no such path, and no such data set on the Hub.
        ValueError: the files cannot be read, or have too few documents.
    """
    if validation_documents < 1:
        raise ValueError(f"--validation_documents is {validation_documents}; it takes at least 1")
    path = Path(source).expanduser()
    files = _find_files(path)
    if files:
        kind = _kind(files)
        root = path if path.is_dir() else path.parent
        names = [os.path.relpath(file, root) for file in files]
        origin, license = f"local {path.name}", "unknown"
        # Escaped, since `datasets` takes names for patterns.
        data_files = [glob.escape(str(file)) for file in files]
        where = {"path": kind, "data_files": data_files, **OPTIONS.get(kind, {})}
    else:
        commit, license = _find_on_hub(source)
        names, origin = [commit], f"Hub {source}"
        where = {"path": source, "name": config, "revision": commit}
    try:
        documents = load_dataset(**where, split="train", streaming=True).select_columns(["text"])
    except PACKED_BADLY as error:
        raise ValueError(f"{source} cannot be read: {error}") from error
    documents.info.description = origin

    texts = _texts(documents)
    held_out = [text for text in islice(texts, validation_documents) if text.strip()]
    head = next(windows(texts, HEAD_CHARACTERS), [])
    if not (held_out and head):
        raise ValueError(
            f"{source} has too few documents with text: the first {validation_documents} are for "
            f"validation (--validation_documents), the others to train on"
        )
    dataset = DatasetDict(
        train=Dataset.from_dict({"text": head}), validation=Dataset.from_dict({"text": held_out})
    )
    name = path.name.partition(".")[0].strip("*") or path.parent.name
    with_info(dataset, name=name, source=origin, license=license, homepage="")
    data = describe(dataset)
    content = "\n".join([data["fingerprint"], *names])
    data["fingerprint"] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return documents.skip(validation_documents), dataset, data


def _find_files(path: Path) -> list[Path]:
    """The files that a path or pattern of this machine means, in the order of their names."""
    if path.is_dir():
        found = [file for file in path.rglob("*") if not is_left_out(file.relative_to(path))]
        found = [file for file in found if _suffix(file) in BUILDERS]
        if not any(file.is_file() for file in found):
            raise ValueError(f"{path} has no files that end in {', '.join(BUILDERS)}")
    else:
        root = Path(path.anchor)  # where a pattern of the whole path is looked for
        found = [path] if path.exists() else root.glob(str(path.relative_to(root)))
    # An empty file has no documents, and `datasets` cannot open it.
    return sorted(file for file in found if file.is_file() and file.stat().st_size)


def _suffix(file: PurePosixPath) -> str:
    """`.jsonl` of `a.jsonl` and of `a.jsonl.gz`."""
    return (file.with_suffix("") if file.suffix in COMPRESSION_SUFFIXES else file).suffix.lower()


def _kind(files: list[Path]) -> str:
    if archives := [file.name for file in files if file.name.lower().endswith(ARCHIVE_SUFFIXES)]:
        raise ValueError(f"{archives[0]} is an archive, which cannot be streamed: unpack it first")
    kinds = {BUILDERS.get(_suffix(file), "text") for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"the files are of different kinds ({', '.join(sorted(kinds))}): put those of one kind "
            f"into one folder, or give a pattern such as 'corpus/*.jsonl'"
        )
    return kinds.pop()


def _find_on_hub(name: str) -> tuple[str, str]:
    """A data set on the Hub: its present commit, which all processes then read, and its licence.

    Raises:
        DataNotFound: there is no such data set, or the Hub cannot be reached.
    """
    try:
        info = HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except (*HUB_ERRORS, ValueError) as error:  # a ValueError: it can be no name of the Hub's
        reason = str(error).strip().partition("\n")[0]
        raise DataNotFound(
            f"{name} is no file, folder or pattern of this machine, nor a data set on the Hub "
            f"({type(error).__name__}: {reason})"
        ) from error
    return info.sha, str((info.card_data or {}).get("license") or "unknown")


def _texts(documents: IterableDataset) -> Iterator[str]:
    """The documents' texts, empty where there is none; what cannot be read is an error."""
    try:
        for example in documents:
            text = example["text"]
            if not isinstance(text, str | None):
                raise ValueError(f"a text must be a string, and one is {text!r:.60}")
            yield text or ""
    except (ValueError, KeyError, *PACKED_BADLY) as error:
        raise ValueError(
            f"{documents.info.description} cannot be read on: {error}. Mend it, and the same "
            f"command goes on"
        ) from error


def windows(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Texts in lists of so many characters or, by the last text of each, more.

    Texts of white space alone are left out, as in `load_text`.
    """
    window, length = [], 0
    for text in texts:
        if text.strip():
            window.append(text)
            length += len(text)
        if length >= characters:
            yield window
            window, length = [], 0
    if window:
        yield window


class PackedStream(torch.utils.data.IterableDataset):
    """The endless stream of one process's blocks: `{"input_ids", "labels"}`, both (block_size,).

    Both are int64, and the same: Hugging Face models shift the labels inside. Blocks do not
    overlap. Within each window of text (`WINDOW_CHARACTERS`) they come in random order, another one
    in each pass.

    Iterating goes on from the stream's place: iterate once at a time, and not in the workers of a
    DataLoader, of which each would have all of it.

    Args:
        documents: what `open_stream` gave; or any stream with the column `text`.
        tokenizer: with a `bos_token` to begin each document with.
        block_size: tokens of a block, at least 2.
        seed: of the order of blocks.
        process_index, num_processes: which of how many shares of the documents this is.

    Raises:
        ValueError: while iterating: there is no document for this process, or one cannot be read.
    """

    def __init__(
        self,
        documents: IterableDataset,
        tokenizer,
        block_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if block_size < 2:
            raise ValueError(f"block_size is {block_size}; a block to learn from has at least 2")
        self.documents = split_dataset_by_node(
            documents, process_index, num_processes, strategy="examples"
        )
        self.share = f"process {process_index + 1} of {num_processes}"
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.seed = seed
        # Where the present window begins, and how many of its blocks have been taken.
        self.place = {"pass": 0, "window": 0, "documents": None, "leftover": [], "taken": 0}

    def state_dict(self) -> dict:
        """The place after the last block that was taken: numbers and names, fit for JSON."""
        return dict(self.place)

    def load_state_dict(self, place: dict) -> None:
        """Go on from a place that `state_dict` gave; the text must still be the same."""
        self.place = dict(place)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self._one_pass()
            if self.place["window"] == 0:
                raise ValueError(
                    f"{self.share} has no document to train on: there are too few documents for so "
                    f"many processes"
                )
            self.place |= {"pass": self.place["pass"] + 1, "window": 0, "documents": None}

    def _one_pass(self) -> Iterator[dict[str, torch.Tensor]]:
        """The blocks from the stream's place to the end of the pass."""
        place = self.place
        self.documents.load_state_dict(place["documents"])
        for texts in windows(_texts(self.documents), WINDOW_CHARACTERS):
            leftover = np.array(place["leftover"], dtype=np.int64)
            ids = np.concatenate([leftover, encode_documents(self.tokenizer, texts)])
            whole = len(ids) - len(ids) % self.block_size
            blocks = torch.from_numpy(ids[:whole]).view(-1, self.block_size)
            random = np.random.default_rng([self.seed, place["pass"], place["window"]])
            for index in random.permutation(len(blocks))[place["taken"] :]:
                place["taken"] += 1
                yield {"input_ids": blocks[index], "labels": blocks[index]}
            place |= {
                "window": place["window"] + 1,
                "documents": self.documents.state_dict(),  # no document has been read ahead
                "leftover": ids[whole:].tolist(),
                "taken": 0,
            }


def main() -> None:
    """Prints what a corpus holds, as far as it is known before it is read."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show how a text collection is streamed.")
    parser.add_argument("source", help="a file, a folder, a glob pattern or a Hub name")
    parser.add_argument("--config", help="configuration of a data set on the Hub")
    parser.add_argument("--validation_documents", type=int, default=100)
    try:
        _, dataset, data = open_stream(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in data.items():
        print(f"{key}: {value}")
    texts = dataset["validation"]["text"]
    print(f"validation: {len(texts)} documents, {sum(map(len, texts)):,} characters")
    print(f"training: begins with\n\n{dataset['train']['text'][0][:300]}")


if __name__ == "__main__":
    main()
