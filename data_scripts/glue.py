"""Two tasks of GLUE, each to judge a sentence: is it kind (SST-2), is it English (CoLA)?

    SST-2   a gorgeous , witty , seductive movie .                    positive
    CoLA    One more pseudo generalization and I'm giving up.         acceptable

SST-2 (Socher et al. 2013) has sentences of film reviews and phrases of them; CoLA (Warstadt et al.
2019) sentences of linguists' publications, some of which they mark as wrong. GLUE (Wang et al.
2019) keeps the labels of its test sets to itself: as everywhere, its validation sets are the test
sets here. `hold_out` sets training sentences apart, to choose settings by.

They are looked for in `--data_dir` or `$GROUNDUP_DATA/{sst2,cola}/` (`train.tsv.xz`, `dev.tsv.xz`,
`test.tsv.xz`; `cola_public.zip`), then on the Hub (`nyu-mll/glue`).

Run it to see what it holds: `python data_scripts/glue.py --task sst2`.
"""

import argparse
import csv
import io
import random
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from groundup.data_scripts.sources import (
    describe,
    find_local,
    find_on_hub,
    log_to_terminal,
    not_found,
    with_info,
)
from groundup.data_scripts.text import BROKEN_ZIP, decode, decompress

HUB_ID = "nyu-mll/glue"
CLASSES = {"sst2": ["negative", "positive"], "cola": ["unacceptable", "acceptable"]}
# The first two are GLUE's training set, cut in two.
SST2_FILES = {"train.tsv.xz": "train", "dev.tsv.xz": "train", "test.tsv.xz": "test"}
COLA_ARCHIVE = "cola_public.zip"
COLA_FOLDER = "cola_public/raw"
FILES = {"sst2": list(SST2_FILES), "cola": [COLA_ARCHIVE]}
LICENSES = {
    "sst2": "none stated; research use, cite Socher et al. (2013)",
    "cola": "fair use for research, cite Warstadt et al. (2019)",
}
HOMEPAGES = {"sst2": "https://nlp.stanford.edu/sentiment", "cola": "https://nyu-mll.github.io/CoLA"}
# How many sentences `hold_out` takes, and of how many words at least: most of SST-2 are phrases of
# others, while those of its test set are whole.
HELD_OUT = {"sst2": (1_500, 12), "cola": (850, 1)}
SHARED_WORDS = 4
# Signs of the Penn Treebank, and how they are written elsewhere.
APART = ((" n't", "n't"), ("``", '"'), ("''", '"'), ("-lrb-", "("), ("-rrb-", ")"))


def load_glue(task: str, data_dir: str | Path | None = None) -> DatasetDict:
    """Sentences and their labels.

    Args:
        task: "sst2" or "cola".
        data_dir: the folder that holds the files; `$GROUNDUP_DATA/<task>`, then the Hub by default.

    Returns:
        The splits `train` and `test` (GLUE's validation set), with the columns `text` and `label`
        (a `ClassLabel` that knows the two names).

    Raises:
        DataNotFound: it is nowhere, or not in the `data_dir` that was given.
        ValueError: there is no such task, or a file is damaged or holds something else.
    """
    if task not in CLASSES:
        raise ValueError(f"no task {task!r}; there are: {', '.join(CLASSES)}")
    if folder := find_local(task, FILES[task], data_dir):
        rows = _read_sst2(folder) if task == "sst2" else _read_cola(folder / COLA_ARCHIVE)
        source = f"local file {', '.join(FILES[task])}"
    else:
        names = [f"{task}/{split}-00000-of-00001.parquet" for split in ("train", "validation")]
        paths, source = find_on_hub(HUB_ID, names), f"Hub {HUB_ID}"
        if paths is None:
            raise not_found(task, FILES[task], hub=HUB_ID)
        rows = dict(zip(("train", "test"), map(_read_parquet, paths), strict=True))
    features = Features({"text": Value("string"), "label": ClassLabel(names=CLASSES[task])})
    dataset = DatasetDict(
        {split: Dataset.from_list(some, features=features) for split, some in rows.items()}
    )
    return with_info(
        dataset, name=task, source=source, license=LICENSES[task], homepage=HOMEPAGES[task]
    )


def hold_out(rows: Dataset, number: int, min_words: int) -> DatasetDict:
    """Cuts training sentences in two, which share no more than a few words in a row.

    Args:
        rows: training sentences.
        number: of the sentences for validation.
        min_words: of each of these.

    Returns:
        The splits `validation`, and `train`: of the other sentences, those that have no four words
        in a row with them in common. SST-2's phrases of up to three words stay, as they do beside
        its test sentences.

    Raises:
        ValueError: there are fewer such sentences.
    """
    long_ones = [i for i, text in enumerate(rows["text"]) if len(text.split()) >= min_words]
    if len(long_ones) < number:
        raise ValueError(
            f"{number} sentences of at least {min_words} words are to be held out, and there are "
            f"{len(long_ones)}"
        )
    held = sorted(random.Random(0).sample(long_ones, number))
    validation = rows.select(held)
    known = {run for text in validation["text"] for run in _word_runs(text)}
    kept = (i for i, text in enumerate(rows["text"]) if known.isdisjoint(_word_runs(text)))
    left = sorted(set(kept) - set(held))
    return DatasetDict({"train": rows.select(left), "validation": validation})


def _word_runs(text: str) -> list[tuple[str, ...]]:
    """All runs of so many words."""
    words = text.split()
    return list(zip(*(words[i:] for i in range(SHARED_WORDS)), strict=False))


def _rows(table, name: str, text: int | str, label: int | str) -> list[dict]:
    """The columns that are wanted, with a clear error where there are none."""
    try:
        found = [{"text": _written(row[text]), "label": int(row[label])} for row in table]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must have a sentence and a label 0 or 1 in each row") from error
    if not found or {row["label"] for row in found} != {0, 1}:
        raise ValueError(f"{name} must have sentences of both labels, 0 and 1")
    return found


def _written(text: str) -> str:
    """With the Penn Treebank's signs as they are elsewhere; SST-2 has them, CoLA in four places."""
    for apart, written in APART:
        text = text.replace(apart, written)
    return text.strip()


def _read_sst2(folder: Path) -> dict[str, list[dict]]:
    splits = {"train": [], "test": []}
    for name, split in SST2_FILES.items():
        text = decode(decompress((folder / name).read_bytes(), name), name)
        table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        splits[split] += _rows(table, name, "sentence", "label")
    return splits


def _read_cola(path: Path) -> dict[str, list[dict]]:
    """GLUE's validation set is CoLA's two development sets, one after the other."""

    def read(name: str) -> list[dict]:
        text = decode(archive.read(f"{COLA_FOLDER}/{name}.tsv"), name)
        table = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        return _rows(table, name, 3, 1)

    try:
        with zipfile.ZipFile(path) as archive:
            test = read("in_domain_dev") + read("out_of_domain_dev")
            return {"train": read("in_domain_train"), "test": test}
    except (*BROKEN_ZIP, KeyError) as error:
        raise ValueError(f"{path.name} is damaged, or not CoLA's archive: {error}") from error


def _read_parquet(path: Path) -> list[dict]:
    try:
        table = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} cannot be read as Parquet: {error}") from error
    return _rows(table, path.name, "sentence", "label")


def main() -> None:
    """Prints what a task holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what a task of GLUE holds.")
    parser.add_argument("--task", default="sst2", help=", ".join(CLASSES))
    parser.add_argument("--data_dir", help="the folder that holds its files")
    try:
        dataset = load_glue(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    for key, value in describe(dataset).items():
        print(f"{key}: {value}")
    for split, rows in dataset.items():
        counts = Counter(rows["label"])
        shares = ", ".join(
            f"{name} {counts[i] / len(rows):.1%}"
            for i, name in enumerate(rows.features["label"].names)
        )
        print(f"{split}: {len(rows):,} sentences; {shares}")
        print(f"    {rows[0]['text']}")


if __name__ == "__main__":
    main()
