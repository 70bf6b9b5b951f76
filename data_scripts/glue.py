"""Two tasks of GLUE, each to judge a sentence: is it kind (SST-2), is it English (CoLA)?

    SST-2   a gorgeous , witty , seductive movie .                    positive
    CoLA    One more pseudo generalization and I'm giving up.         acceptable

SST-2 (Socher et al. 2013) has sentences of film reviews and phrases of them; CoLA (Warstadt et al.
2019) sentences of linguists' publications, some of which they mark as wrong. GLUE (Wang et al.
2019) keeps the labels of its test sets to itself: as everywhere, its validation sets are the test
sets here, and some of the training sentences are for validation.

They are looked for in `--data_dir` or `$GROUNDUP_DATA/{sst2,cola}/` (`train.tsv.xz`, `dev.tsv.xz`,
`test.tsv.xz`; `cola_public.zip`), then on the Hub (`nyu-mll/glue`). The two may cut training from
validation differently; the test sentences are the same.

Run it to see what it holds: `python data_scripts/glue.py --task sst2`.
"""

import argparse
import csv
import io
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
from groundup.data_scripts.text import decode, decompress

HUB_ID = "nyu-mll/glue"
CLASSES = {"sst2": ["negative", "positive"], "cola": ["unacceptable", "acceptable"]}
SST2_FILES = {"train": "train.tsv.xz", "validation": "dev.tsv.xz", "test": "test.tsv.xz"}
COLA_ARCHIVE = "cola_public.zip"
COLA_FOLDER = "cola_public/raw"
FILES = {"sst2": list(SST2_FILES.values()), "cola": [COLA_ARCHIVE]}
LICENSES = {
    "sst2": "none stated; research use, cite Socher et al. (2013)",
    "cola": "fair use for research, cite Warstadt et al. (2019)",
}
HOMEPAGES = {"sst2": "https://nlp.stanford.edu/sentiment", "cola": "https://nyu-mll.github.io/CoLA"}
VALIDATION_SHARE = 0.1  # of the training sentences, where nobody has set some apart


def load_glue(task: str, data_dir: str | Path | None = None) -> DatasetDict:
    """Sentences and their labels.

    Args:
        task: "sst2" or "cola".
        data_dir: the folder that holds the files; `$GROUNDUP_DATA/<task>`, then the Hub by default.

    Returns:
        The splits `train`, `validation` and `test` (GLUE's validation set), with the columns `text`
        and `label` (a `ClassLabel` that knows the two names).

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
        splits = ("train", "validation")
        names = [f"{task}/{split}-00000-of-00001.parquet" for split in splits]
        paths, source = find_on_hub(HUB_ID, names), f"Hub {HUB_ID}"
        if paths is None:
            raise not_found(task, FILES[task], hub=HUB_ID)
        rows = dict(zip(("train", "test"), map(_read_parquet, paths), strict=True))
    features = Features({"text": Value("string"), "label": ClassLabel(names=CLASSES[task])})
    dataset = DatasetDict(
        {split: Dataset.from_list(some, features=features) for split, some in rows.items()}
    )
    if "validation" not in dataset:
        parts = dataset["train"].train_test_split(VALIDATION_SHARE, seed=0)
        dataset["train"], dataset["validation"] = parts["train"], parts["test"]
    return with_info(
        dataset, name=task, source=source, license=LICENSES[task], homepage=HOMEPAGES[task]
    )


def _rows(table, name: str, text: int | str, label: int | str) -> list[dict]:
    """The columns that are wanted, with a clear error where there are none."""
    try:
        found = [{"text": row[text].strip(), "label": int(row[label])} for row in table]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must have a sentence and a label 0 or 1 in each row") from error
    if not found or {row["label"] for row in found} != {0, 1}:
        raise ValueError(f"{name} must have sentences of both labels, 0 and 1")
    return found


def _read_sst2(folder: Path) -> dict[str, list[dict]]:
    splits = {}
    for split, name in SST2_FILES.items():
        text = decode(decompress((folder / name).read_bytes(), name), name)
        table = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        splits[split] = _rows(table, name, "sentence", "label")
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
    except (zipfile.BadZipFile, KeyError) as error:
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
