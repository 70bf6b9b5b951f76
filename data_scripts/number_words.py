"""Numbers in digits, and in English words.

    407316    four hundred and seven thousand, three hundred and sixteen

The words are those of the PyPI package `num2words`, from 0 to 999,999. 5,000 numbers are for
testing, 2,000 for validation, drawn from all of them; 100,000 others are for training, those below
1,000 before all: there are few of them, and larger numbers are made of them. 0 is there a hundred
times, since no other number has its word.

Nothing is looked for: the pairs are made, in some ten seconds.

Run it to see what it holds: `python data_scripts/number_words.py`.
"""

import argparse
import random
from importlib.metadata import version

from datasets import DatasetDict
from num2words import num2words

from groundup.data_scripts.pairs import make_pairs, show_pairs
from groundup.data_scripts.sources import with_info

NAME = "number-words"
LIMIT = 1_000_000
SMALL = 1_000  # numbers below are trained on, unless they are held out
ZEROS = 100
SIZES = {"test": 5_000, "validation": 2_000, "train": 100_000}


def load_number_words() -> DatasetDict:
    """Numbers and their words: "407316", "four hundred and seven thousand, three hundred ...".

    Returns:
        The splits `train`, `validation` and `test`, with the columns `source` and `target`. No two
        splits have a number in common.
    """
    numbers = list(range(LIMIT))
    random.Random(0).shuffle(numbers)
    held_out = SIZES["test"] + SIZES["validation"]
    # Sorting keeps the order of what is alike: the small numbers, then the others.
    others = sorted(numbers[held_out:], key=lambda number: number >= SMALL)
    parts = {
        "train": others[: SIZES["train"]],
        "validation": numbers[SIZES["test"] : held_out],
        "test": numbers[: SIZES["test"]],
    }
    parts["train"] += [number for number in parts["train"] if number == 0] * (ZEROS - 1)
    dataset = make_pairs(
        {
            split: [(str(number), num2words(number)) for number in part]
            for split, part in parts.items()
        }
    )
    return with_info(
        dataset,
        name=NAME,
        source=f"made by PyPI num2words {version('num2words')}",
        license="none needed: numbers",
        homepage="https://github.com/savoirfairelinux/num2words",
    )


def main() -> None:
    """Prints what the data set holds."""
    argparse.ArgumentParser(description="Show numbers and their words.").parse_args()
    show_pairs(load_number_words())


if __name__ == "__main__":
    main()
