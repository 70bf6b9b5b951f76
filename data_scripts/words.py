"""Running words for word vectors: books, Wikipedia and the Brown corpus, or a text of your own.

    marley was dead to begin with there is no doubt whatever about that

A word is `[a-z]+('[a-z]+)?` of the lower-cased text, whose typographic apostrophes count as plain
ones. The corpus is read as a stream, a piece at a time: first to count its words, then to write
them down as numbers in a file without a name, which training reads through a memory map. Memory
grows with the vocabulary, never with the corpus; but a file in UTF-16 and each document of an
archive are read whole.

The corpus of the anchor is made of three folders of `--data_dir` or `$GROUNDUP_DATA`, taken as they
lie there, with the headers of Project Gutenberg: 4.7 million words, of which some 30,200 occur five
times.

- `gutenberg`: fourteen books of Charles Dickens and seventeen by others, public domain;
- `wikipedia`: 30 articles and the 15,000 sentences of WikiSplit's development sets, CC BY-SA;
- `brown`: the Brown corpus of 1961, for non-commercial purposes.

Neither the Hub nor a package has this collection; any other text does as well by
`train/word2vec.py --text book.txt`. Run it to see what it holds: `python data_scripts/words.py`.
"""

import argparse
import hashlib
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from groundup.data_scripts.gutenberg import DICKENS_FILE, OTHERS_FILE
from groundup.data_scripts.sources import find_local, log_to_terminal, not_found
from groundup.data_scripts.text import stream_text

logger = logging.getLogger(__name__)

NAME = "books-wikipedia-brown"
BROWN_FILE = "brown.tsv.xz"
WIKIPEDIA_FILES = ["wiki_demo_30_articles.txt.xz", "wikisplit_sentences.txt.xz"]
FOLDERS = {
    "gutenberg": [DICKENS_FILE, OTHERS_FILE],
    "wikipedia": WIKIPEDIA_FILES,
    "brown": [BROWN_FILE],
}
# Dickens was typed under DOS.
ENCODINGS = {DICKENS_FILE: "cp437"}
LICENSE = "public domain (books), CC BY-SA (Wikipedia), non-commercial (Brown)"
WORD = r"[a-z]+(?:'[a-z]+)?"
APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"  # as in print
UNKNOWN, UNKNOWN_ID = "<unk>", 0
# So many different words are counted exactly; beyond, the rarest are forgotten (`count_words`).
MAX_COUNTED = 5_000_000


@dataclass
class Words:
    """A corpus that can be read any number of times.

    Args:
        read: starts to read it: pieces of text, cut between words.
        name, source, license: as `sources.describe` has them.
    """

    read: Callable[[], Iterator[str]]
    name: str
    source: str
    license: str


@dataclass
class Vocabulary:
    """The words that get a vector, the commonest first, behind `<unk>`.

    Args:
        words: `words[i]` has the id i; the first is `<unk>`.
        counts: how often each occurs; 0 for `<unk>`.
        num_words: words of the corpus, rare ones too.
        fingerprint: 16 hexadecimal digits of the SHA-256 of the corpus's words, in order.
    """

    words: list[str]
    counts: np.ndarray
    num_words: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.words)


def open_words(text: str | Path | None = None, data_dir: str | Path | None = None) -> Words:
    """The corpus of the anchor, or a text of your own; nothing is read yet.

    Args:
        text: a file, a folder or an archive of plain text, in place of the corpus.
        data_dir: the folder that holds `gutenberg`, `wikipedia` and `brown`.

    Raises:
        DataNotFound: it is nowhere.
    """
    if text is not None:
        path = Path(text).expanduser()
        next(stream_text(path), None)  # a clear error now
        kind = f"folder {path.resolve().name}/" if path.is_dir() else f"file {path.name}"
        name = path.resolve().name.partition(".")[0]
        return Words(lambda: stream_text(path), name, f"local {kind}", "unknown")
    files = []
    for name, wanted in FOLDERS.items():
        folder = find_local(name, wanted, data_dir)
        if folder is None:
            error = not_found(name, wanted)
            error.args = (f"{error}; or give a text of your own: --text book.txt",)
            raise error
        files += [folder / file for file in wanted]
    source = f"local folders {', '.join(FOLDERS)}"
    return Words(lambda: _read_all(files), NAME, source, LICENSE)


def _read_all(files: list[Path]) -> Iterator[str]:
    for file in files:
        pieces = stream_text(file, ENCODINGS.get(file.name))
        if file.name == BROWN_FILE:  # before each sentence, the name of its sample and a tab
            pieces = (re.sub(r"^\w+\t", "", piece, flags=re.MULTILINE) for piece in pieces)
        yield from pieces


def split_words(text: str) -> list[str]:
    """The words of a text, in order, as the tokenizer has them."""
    return re.findall(WORD, text.lower().replace(APOSTROPHE, "'"))


def count_words(
    corpus: Words, min_count: int, max_words: int | None = None, max_counted: int = MAX_COUNTED
) -> Vocabulary:
    """Reads a corpus once and chooses the words that get a vector.

    Should more different words turn up than `max_counted`, those that were seen least are forgotten
    as they go, as in word2vec's own program: the counts of rare words are then a little low.

    Args:
        min_count: rarer words get no vector, and are passed over in training.
        max_words: keep only so many, the commonest.

    Raises:
        ValueError: the corpus has no words, or fewer than two that are frequent enough.
    """
    counts, digest, num_words, fewest = Counter(), hashlib.sha256(), 0, 0
    for piece in corpus.read():
        words = split_words(piece)
        digest.update(" ".join(words).encode() + b" ")
        num_words += len(words)
        counts.update(words)
        while len(counts) > max_counted:
            fewest += 1
            counts = Counter({word: n for word, n in counts.items() if n > fewest})
            logger.warning("more than %d words: those seen %d times go", max_counted, fewest)
    if not num_words:
        raise ValueError(
            f"{corpus.source} has no words in it: a word is made of the letters a to z"
        )
    kept = sorted(
        ((w, n) for w, n in counts.items() if n >= min_count), key=lambda x: (-x[1], x[0])
    )
    kept = kept[:max_words]
    if len(kept) < 2:
        raise ValueError(
            f"{corpus.source} has {num_words:,} words, of which {len(kept)} occur {min_count} "
            f"times: give more text or a lower --min_count, since vectors need two words to compare"
        )
    return Vocabulary(
        words=[UNKNOWN, *(word for word, _ in kept)],
        counts=np.array([0, *(n for _, n in kept)], dtype=np.int64),
        num_words=num_words,
        fingerprint=digest.hexdigest()[:16],
    )


def describe_words(corpus: Words, vocabulary: Vocabulary) -> dict[str, str]:
    """What `sources.describe` says of a data set, of a corpus."""
    return {
        "name": corpus.name,
        "source": corpus.source,
        "license": corpus.license,
        "fingerprint": vocabulary.fingerprint,
    }


def check_memory(num_words: int, hidden_size: int, available: int | None = None) -> None:
    """Whether the vectors fit into the memory that is free.

    In training there are two for each word; when they are scored, 5.1 times as many numbers as the
    vectors have were seen in use.

    Args:
        available: bytes; by default what the system says, if it does.

    Raises:
        ValueError: they do not.
    """
    if available is None:
        if "SC_AVPHYS_PAGES" not in os.sysconf_names:
            return
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 5 * 4 * num_words * hidden_size
    if needed > available:
        raise ValueError(
            f"vectors of {hidden_size} numbers for {num_words:,} words, and their copies, need "
            f"{needed / 2**30:.1f} GiB, and {available / 2**30:.1f} are free: raise --min_count, "
            f"or set --max_vocab_size or a smaller --hidden_size"
        )


def encode_words(corpus: Words, vocabulary: Vocabulary, folder: str | Path) -> np.ndarray:
    """The corpus as ids, without the words that have none: (words,), int32, memory-mapped.

    The file has no name and goes with the array. Its pages are read from disk as they are needed.

    Args:
        folder: where the file lies, such as that of the run: the system's own folder for such
            files may be one in memory.
    """
    ids = {word: i for i, word in enumerate(vocabulary.words)}
    with tempfile.TemporaryFile(dir=folder) as file:
        for piece in corpus.read():
            row = np.fromiter((ids.get(w, 0) for w in split_words(piece)), dtype=np.int32)
            file.write(row[row != UNKNOWN_ID].tobytes())
        file.flush()
        return np.memmap(file, dtype=np.int32, mode="r")


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is `words[i]`; the first stands for all others, and for padding.

    It saves and loads as any other (`AutoTokenizer`).
    """
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(APOSTROPHE, "'")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def main() -> None:
    """Prints what a corpus holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show which words a corpus holds.")
    parser.add_argument("--text", help="a text file or a folder of them, in place of the corpus")
    parser.add_argument("--data_dir", help="the folder that holds gutenberg, wikipedia and brown")
    parser.add_argument("--min_count", type=int, default=5, help="rarer words are passed over")
    args = parser.parse_args()
    try:
        corpus = open_words(args.text, args.data_dir)
        vocabulary = count_words(corpus, args.min_count)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe_words(corpus, vocabulary).items():
        print(f"{key}: {value}")
    kept = vocabulary.counts.sum() / vocabulary.num_words
    print(f"{vocabulary.num_words:,} words; {len(vocabulary) - 1:,} different ones")
    print(f"occur {args.min_count} times, and make up {kept:.1%} of them; the commonest:")
    print(" ".join(vocabulary.words[1:21]))


if __name__ == "__main__":
    main()
