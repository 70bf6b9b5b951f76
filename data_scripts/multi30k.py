"""Multi30k: descriptions of photographs, and their translations.

    Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.
    Two young, White males are outside near many bushes.

29,000 sentences to train on, 1,014 to validate and 1,000 to test, in English, German and French
(Elliott et al. 2016 and 2017); derived from Flickr30k, for non-commercial research and education.

They are looked for in `--data_dir` or `$GROUNDUP_DATA/multi30k/` (`train.de.xz`, `train.en.xz`,
`val.de.xz`, ...), then on the Hub (`bentrevett/multi30k`, English and German). No Python package
carries them.

Run it to see what it holds: `python data_scripts/multi30k.py`.
"""

import argparse
import json
from pathlib import Path

from datasets import DatasetDict

from groundup.data_scripts.pairs import make_pairs, show_pairs
from groundup.data_scripts.sources import (
    find_local,
    find_on_hub,
    log_to_terminal,
    not_found,
    with_info,
)
from groundup.data_scripts.text import read_text

NAME = "multi30k"
HUB_ID = "bentrevett/multi30k"
LANGUAGES = ("de", "en", "fr")
SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
HUB_FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}


def load_multi30k(
    source: str = "de", target: str = "en", data_dir: str | Path | None = None
) -> DatasetDict:
    """Sentences of one language, and the same in another.

    Args:
        source, target: "de", "en" or "fr".
        data_dir: the folder that holds the files; `$GROUNDUP_DATA/multi30k`, then the Hub by
            default.

    Returns:
        The splits `train`, `validation` and `test`, with the columns `source` and `target`.

    Raises:
        DataNotFound: they are nowhere, or not in the `data_dir` that was given.
        ValueError: there is no such language, or a file is damaged, or two files do not match.
    """
    for language in (source, target):
        if language not in LANGUAGES:
            raise ValueError(f"no language {language!r}; there are: {', '.join(LANGUAGES)}")
    if source == target:
        raise ValueError(f"source and target are both {source!r}: nothing is to be translated")
    files = [f"{split}.{language}.xz" for split in SPLITS.values() for language in (source, target)]
    if folder := find_local(NAME, files, data_dir):
        origin = f"local files {', '.join(files)}"
        pairs = {
            split: [_read_lines(folder / f"{file}.{language}.xz") for language in (source, target)]
            for split, file in SPLITS.items()
        }
    else:
        hub = HUB_ID if "fr" not in (source, target) else None
        paths = find_on_hub(HUB_ID, list(HUB_FILES.values())) if hub else None
        if paths is None:
            raise not_found(NAME, files, hub=hub)
        origin = f"Hub {HUB_ID}"
        pairs = {
            split: _read_json_lines(path, source, target)
            for split, path in zip(HUB_FILES, paths, strict=True)
        }
    for split, (sources, targets) in pairs.items():
        if len(sources) != len(targets):
            raise ValueError(
                f"{NAME}'s {split} has {len(sources)} lines of {source} and {len(targets)} of "
                f"{target}: they must be translations of each other, line by line"
            )
    dataset = make_pairs({split: list(zip(*both, strict=True)) for split, both in pairs.items()})
    return with_info(
        dataset,
        name=f"{NAME}-{source}-{target}",
        source=origin,
        license="non-commercial research and education; cite Elliott et al. (2016, 2017)",
        homepage="https://github.com/multi30k/dataset",
    )


def _read_lines(path: Path) -> list[str]:
    lines = read_text(path).strip("\n").split("\n")
    if not any(lines):
        raise ValueError(f"{path.name} has no text in it")
    return [line.strip() for line in lines]


def _read_json_lines(path: Path, source: str, target: str) -> tuple[list[str], list[str]]:
    try:
        rows = [json.loads(line) for line in read_text(path).strip().split("\n")]
        return [row[source].strip() for row in rows], [row[target].strip() for row in rows]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} must have {source} and {target} in each line") from error


def main() -> None:
    """Prints what the data set holds."""
    log_to_terminal()
    parser = argparse.ArgumentParser(description="Show what Multi30k holds.")
    parser.add_argument("--source", default="de", help=", ".join(LANGUAGES))
    parser.add_argument("--target", default="en", help=", ".join(LANGUAGES))
    parser.add_argument("--data_dir", help="the folder that holds its files")
    try:
        show_pairs(load_multi30k(**vars(parser.parse_args())))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
