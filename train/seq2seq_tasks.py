"""What train/seq2seq.py can learn: its data sets, how what is written is scored, what cards say."""

from collections.abc import Callable
from dataclasses import dataclass

import evaluate
from datasets import Dataset, DatasetDict

from groundup.data_scripts.multi30k import load_multi30k
from groundup.data_scripts.number_words import load_number_words
from groundup.data_scripts.phonemes import load_phonemes, phoneme_tokenizer, pronunciations
from groundup.data_scripts.pig_latin import load_pig_latin
from groundup.data_scripts.tokenization import train_tokenizer
from groundup.train.metrics import BLEU, BLEU_SIGNATURE, ExactMatch, PhonemeErrorRate


def one_answer(rows: Dataset) -> tuple[list[str], list[str]]:
    """Each source with its target."""
    return list(rows["source"]), list(rows["target"])


def all_pronunciations(rows: Dataset) -> tuple[list[str], list[list[str]]]:
    """Each word once, with all the ways to say it."""
    found = pronunciations(rows)
    return list(found), list(found.values())


def of_characters(texts: list[str], arguments):
    """A token for each character of the texts."""
    return train_tokenizer("characters", texts)


@dataclass(frozen=True)
class Task:
    """What differs from one data set to another.

    Args:
        load: gives the pairs; of the run's `PairArguments`.
        flags: those of `PairArguments` that not all data sets have a use for.
        make_tokenizer: one for both sides; of all texts to train on, and the arguments.
        metric: of what is written and what `answers` gives.
        scores: name of each figure of the metric -> what cards call it; the first is the score.
        title, task_name, tags: what a card calls it.
        about: goes on after "It"; a field such as {target_language} is an argument.
        languages: those of the card, which may be fields too.
        limits: what a model is not good for.
        answers: of a split, the sources and, in their order, the right targets: one text each, or
            a list where several are right.
        license: of the model.
        hub: the data set's name on the Hub.
        pipeline_tag: the Hub's name of the kind of task.
        note: what the card says below the loss curve.
    """

    load: Callable[..., DatasetDict]
    flags: tuple[str, ...]
    make_tokenizer: Callable
    metric: type[evaluate.Metric]
    scores: dict[str, str]
    title: str
    task_name: str
    tags: tuple[str, ...]
    about: str
    limits: str
    languages: tuple[str, ...] = ("en",)
    answers: Callable[[Dataset], tuple[list[str], list]] = one_answer
    license: str = "apache-2.0"
    hub: str | None = None
    pipeline_tag: str = "text2text-generation"
    note: str = ""


TASKS = {
    "multi30k": Task(
        load=lambda a: load_multi30k(a.source_language, a.target_language, a.data_dir),
        flags=("data_dir", "source_language", "target_language", "tokenizer_vocab_size"),
        make_tokenizer=lambda texts, a: train_tokenizer(
            "bpe", ["\n".join(texts)], a.tokenizer_vocab_size
        ),
        metric=BLEU,
        scores={"bleu": "BLEU"},
        title="translations",
        task_name="Translation",
        tags=("translation",),
        about="translates descriptions of photographs from {source_language} to {target_language}",
        limits="It knows descriptions of photographs, a dozen words long, and no other text. What "
        "it does not know it makes up.",
        languages=("{source_language}", "{target_language}"),
        license="other",  # the data is for non-commercial research
        hub="bentrevett/multi30k",
        pipeline_tag="translation",
        note=f"BLEU's signature: `{BLEU_SIGNATURE}`.",
    ),
    "pig_latin": Task(
        load=lambda a: load_pig_latin(a.data_dir),
        flags=("data_dir", "separators"),
        make_tokenizer=of_characters,
        metric=ExactMatch,
        scores={"exact_match": "Exact match"},
        title="Pig Latin",
        task_name="English to Pig Latin",
        tags=("pig-latin", "characters"),
        about="turns English into Pig Latin, character by character: words, and sentences of up to "
        "60 characters, half of each in the score",
        limits="It knows letters, apostrophes, hyphens and the signs , ; : . ! ? and no others; of "
        "longer texts it loses its place. A rule of three lines does the same without mistakes: it "
        "is a model to learn from.",
    ),
    "number_words": Task(
        load=lambda a: load_number_words(),
        flags=(),
        make_tokenizer=of_characters,
        metric=ExactMatch,
        scores={"exact_match": "Exact match"},
        title="numbers in words",
        task_name="Digits to English words",
        tags=("numbers", "characters"),
        about="writes numbers from 0 to 999,999 in English words, character by character",
        limits="It knows whole numbers of up to six digits, without separators: no larger, no "
        "negative ones, no fractions. A program does the same without mistakes: it is a model to "
        "learn from.",
    ),
    "phonemes": Task(
        load=lambda a: load_phonemes(a.data_dir),
        flags=("data_dir",),
        make_tokenizer=lambda texts, a: phoneme_tokenizer(),
        metric=PhonemeErrorRate,
        scores={"phoneme_error_rate": "Phoneme error rate", "word_error_rate": "Word error rate"},
        title="pronunciations",
        task_name="Graphemes to phonemes",
        tags=("grapheme-to-phoneme",),
        about="says how English words are pronounced in America, in the phonemes of ARPAbet, "
        "without stress",
        limits="It reads single words in lower case, and guesses at those that are not said as "
        "they are written. It does not know which of two ways a sentence wants (`read`, `lead`).",
        answers=all_pronunciations,
        note="Words of the test data are not in the training data, but words related to them may "
        "be. Where the dictionary has several pronunciations, the closest one counts.",
    ),
}
