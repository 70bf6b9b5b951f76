"""Streamed text: no token twice, none lost, resumable anywhere; alone and by two processes."""

import gzip
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from test_recipe import TINY, assert_refused, assert_same_bits, toy_text

from groundup.data_scripts import streaming
from groundup.data_scripts.sources import DataNotFound
from groundup.data_scripts.streaming import PackedStream, open_stream
from groundup.data_scripts.tokenization import encode_documents, train_tokenizer

BLOCK = 8
# Documents that are empty, shorter than a block, and many blocks long; no character is used twice,
# so that a token tells where it comes from.
LENGTHS = [5, 3, 0, 7, 1, 90, 0, 12, 2, 8, 16, 1, 30, 6, 9, 0, 4, 11, 60, 2, 5, 3, 7]
HELD_OUT = 3  # one of them is empty
_ALL = "".join(map(chr, range(0x4E00, 0x4E00 + sum(LENGTHS))))
DOCUMENTS = [_ALL[sum(LENGTHS[:i]) : sum(LENGTHS[: i + 1])] for i in range(len(LENGTHS))]
TO_TRAIN_ON = DOCUMENTS[HELD_OUT:]


def json_lines(texts: list) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("characters", DOCUMENTS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of files of very different length."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, (start, end) in {"a": (0, 4), "b": (4, 5), "c": (5, 20), "d": (20, None)}.items():
        (folder / f"{name}.jsonl").write_text(json_lines(DOCUMENTS[start:end]))
    (folder / "empty.jsonl").touch()
    return folder


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of two or three documents, so that a pass has many."""
    monkeypatch.setattr(streaming, "WINDOW_CHARACTERS", 20)


@pytest.fixture
def make_stream(corpus, tokenizer, small_windows):
    """`make_stream(process_index, num_processes)`: a new stream over the corpus."""

    def make(process_index: int = 0, num_processes: int = 1, seed: int = 0) -> PackedStream:
        documents, _, _ = open_stream(str(corpus), validation_documents=HELD_OUT)
        return PackedStream(documents, tokenizer, BLOCK, seed, process_index, num_processes)

    return make


def take(stream: PackedStream, count: int) -> list[list[int]]:
    """The next blocks of a stream."""
    return [block["input_ids"].tolist() for block in islice(stream, count)]


def one_pass(stream: PackedStream) -> tuple[list[list[int]], list[int]]:
    """The blocks of the first pass, and the tokens that it leaves over."""
    blocks, iterator = [], iter(stream)
    while (block := next(iterator)) and stream.state_dict()["pass"] == 0:
        assert block["input_ids"].shape == (BLOCK,) and block["input_ids"].dtype == torch.int64
        assert torch.equal(block["labels"], block["input_ids"])
        blocks.append(block["input_ids"].tolist())
    return blocks, stream.state_dict()["leftover"]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_no_token_twice_and_none_lost(make_stream, tokenizer, num_processes):
    """Each process packs every n-th document: the row of `encode_documents`, cut into blocks."""
    seen = []
    for index in range(num_processes):
        blocks, leftover = one_pass(make_stream(index, num_processes))
        texts = [text for text in TO_TRAIN_ON[index::num_processes] if text]
        row = encode_documents(tokenizer, texts).tolist()
        whole = len(row) - len(row) % BLOCK
        assert leftover == row[whole:]
        assert sorted(blocks) == sorted(row[i : i + BLOCK] for i in range(0, whole, BLOCK))
        seen += [t for part in (*blocks, leftover) for t in part if t != tokenizer.bos_token_id]
    assert tokenizer.decode(sorted(seen)) == "".join(TO_TRAIN_ON)


def test_a_pass_goes_over_into_the_next(make_stream, tokenizer):
    """What is too little for a block begins the next pass: eight passes make whole blocks."""
    row = encode_documents(tokenizer, [text for text in TO_TRAIN_ON if text]).tolist()
    stream = make_stream()
    tokens = [token for block in take(stream, len(row)) for token in block]
    assert sorted(tokens) == sorted(row * BLOCK)
    assert stream.state_dict()["pass"] == BLOCK - 1


def test_the_seed_and_the_pass_make_the_order(make_stream, monkeypatch):
    monkeypatch.setattr(streaming, "WINDOW_CHARACTERS", 10**6)  # all in one
    blocks_of_a_pass = 36
    first, again, other = (take(make_stream(seed=seed), blocks_of_a_pass) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other) != first
    stream = make_stream()
    stream.load_state_dict(stream.state_dict() | {"pass": 1})
    second = take(stream, blocks_of_a_pass)
    assert sorted(second) == sorted(first) and second != first


@pytest.mark.parametrize("num_processes", [1, 2])
def test_resumes_at_every_block(make_stream, num_processes):
    """Two passes and more; the place goes through JSON, as in a checkpoint."""
    straight, places = make_stream(num_processes - 1, num_processes), []
    blocks = []
    for block in islice(straight, 80):
        places.append(json.dumps(straight.state_dict()))
        blocks.append(block["input_ids"].tolist())
    assert straight.state_dict()["pass"] >= 2
    resumed = make_stream(num_processes - 1, num_processes)
    for position, place in enumerate(places[:70], start=1):
        resumed.load_state_dict(json.loads(place))
        assert take(resumed, 10) == blocks[position : position + 10], position


def test_to_resume_is_not_to_begin_again(make_stream, monkeypatch):
    """Only the present window is tokenised, and of the past nothing but a few numbers is kept."""
    stream, tokenised = make_stream(), []
    take(stream, 28)
    place = stream.state_dict()
    assert place["pass"] == 0 and place["window"] == 4
    assert len(json.dumps(place)) < 1000

    def encode(tokenizer, texts):
        tokenised.append(texts)
        return encode_documents(tokenizer, texts)

    monkeypatch.setattr(streaming, "encode_documents", encode)
    resumed = make_stream()
    resumed.load_state_dict(place)
    take(resumed, 1)
    assert len(tokenised) == 1


# ------------------------------------------------------------------------- what can be streamed


def test_all_kinds_of_files_give_the_same_documents(tmp_path):
    texts = [f"document {i}\nof two lines" for i in range(12)]
    halves = {"x": texts[:6], "y": texts[6:]}
    for kind in ("text", "json", "gzip", "parquet"):
        (tmp_path / kind / "below").mkdir(parents=True)
    for name, half in halves.items():
        (tmp_path / "json" / f"{name}.jsonl").write_text(json_lines(half))
        packed = gzip.compress(json_lines(half).encode())
        (tmp_path / "gzip" / "below" / f"{name}.jsonl.gz").write_bytes(packed)
        Dataset.from_dict({"n": [0] * 6, "text": half}).to_parquet(
            tmp_path / "parquet" / f"{name}.parquet"
        )
    (tmp_path / "text" / "README.md").write_text("of these files")
    for i, text in enumerate(texts):
        mark = "\ufeff" if i == 0 else ""
        (tmp_path / "text" / "below" / f"{i:02}.txt").write_text(mark + text, encoding="utf-8")

    for source in ("text", "json", "gzip", "parquet", "json/*.jsonl", "**/*.parquet"):
        documents, dataset, data = open_stream(str(tmp_path / source), validation_documents=4)
        assert dataset["validation"]["text"] == texts[:4], source
        assert [row["text"] for row in documents] == texts[4:] == dataset["train"]["text"]
        assert set(data) == {"name", "source", "license", "fingerprint"}
        assert str(tmp_path) not in str(data)


def test_names_that_look_like_patterns(tmp_path):
    names = ["a [1].txt", "b*.txt", "c.txt"]
    for name in names:
        (tmp_path / name).write_text(f"document {name}")
    documents, dataset, _ = open_stream(str(tmp_path), validation_documents=1)
    assert dataset["validation"]["text"] == ["document a [1].txt"]
    assert [row["text"] for row in documents] == ["document b*.txt", "document c.txt"]


def test_packed_files_that_break_off_and_archives(tmp_path):
    packed = gzip.compress(json_lines([f"{i} {toy_text(20)}" for i in range(50)]).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        open_stream(str(tmp_path), validation_documents=1)
    (tmp_path / "a.tar.gz").write_bytes(b"archive")
    with pytest.raises(ValueError, match="unpack it first"):
        open_stream(str(tmp_path / "a.tar.gz"))


def test_the_fingerprint_knows_the_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(json_lines(["x", "y"]))
    before = open_stream(str(tmp_path), validation_documents=1)[2]["fingerprint"]
    assert open_stream(str(tmp_path), validation_documents=1)[2]["fingerprint"] == before
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    assert open_stream(str(tmp_path), validation_documents=1)[2]["fingerprint"] != before


def test_a_data_set_on_the_hub(hub):
    """Read where it lies, at the commit that it had when it was opened."""
    api = HfApi()
    api.create_repo("user/streamed", repo_type="dataset")
    where = {"repo_id": "user/streamed", "repo_type": "dataset"}
    texts = [f"document {i}" for i in range(20)]
    api.upload_file(path_or_fileobj=json_lines(texts).encode(), path_in_repo="train.jsonl", **where)
    documents, dataset, data = open_stream("user/streamed", validation_documents=2)
    assert dataset["validation"]["text"] == texts[:2]
    assert data["source"] == "Hub user/streamed"
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="train.jsonl", **where)
    assert [row["text"] for row in documents] == texts[2:]
    with pytest.raises(DataNotFound, match=r"user/none is no file.* nor a data set on the Hub"):
        open_stream("user/none")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jsonl": '{"text": "a"}\n' * 3 + '{"text": "b\n'}, "folder.*cannot be read on.*JSON"),
        ({"a.jsonl": '{"text": "a"}\n' * 3 + '{"text": 7}\n'}, "must be a string, and one is 7"),
        ({"a.jsonl": '{"txt": "a"}\n'}, "'text'.*not in the dataset.*'txt'"),
        ({"a.parquet": "no parquet"}, "Parquet"),
        ({"a.txt": "a", "b.txt": "caf\udce9"}, "folder.*cannot be read on.*utf-8"),
        ({"a.txt": "a", "b.jsonl": "{}"}, "different kinds .json, text.: put those of one kind"),
        ({"a.csv": "a"}, "has no files that end in .txt, .md, .jsonl"),
        ({"a.txt": "a"}, "too few documents .*first 1 are for validation"),
        ({"a.txt": "a", "b.txt": " \n"}, "too few documents"),
    ],
)
def test_what_cannot_be_streamed_is_said(tmp_path, files, words):
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=words):
        open_stream(str(tmp_path / "folder"), validation_documents=1)


def test_a_bad_line_in_the_middle_stops_the_stream(tmp_path, make_stream, corpus, tokenizer):
    """After all that was before it; when it is mended, the same place leads on."""
    expected = take(make_stream(), 60)
    for path in corpus.glob("*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    documents, _, _ = open_stream(str(tmp_path), validation_documents=HELD_OUT)
    whole = (tmp_path / "d.jsonl").read_text()
    (tmp_path / "d.jsonl").write_text(whole + "no JSON\n")
    stream, blocks = PackedStream(documents, tokenizer, BLOCK, seed=0), []
    with pytest.raises(ValueError, match=r"cannot be read on.*JSON.*Mend it"):
        blocks.extend(block["input_ids"].tolist() for block in stream)
    (tmp_path / "d.jsonl").write_text(whole)
    place = stream.state_dict()
    mended = PackedStream(documents, tokenizer, BLOCK, seed=0)
    mended.load_state_dict(place)
    assert len(blocks) > 20
    assert blocks + take(mended, 60 - len(blocks)) == expected


def test_more_processes_than_documents(make_stream):
    with pytest.raises(ValueError, match="process 21 of 21 has no document"):
        take(make_stream(20, 21), 1)


# --------------------------------------------------------------------------------------- runs

RUN = TINY + "streaming: true\ntokenizer: bpe\ntokenizer_vocab_size: 280\nvalidation_documents: 9"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """`flags(folder, *more)`: the flags of a tiny streamed run into this folder."""
    files = tmp_path_factory.mktemp("streamed")
    (files / "tiny.yaml").write_text(RUN)
    (files / "corpus.jsonl").write_text(json_lines(toy_text().splitlines()))

    def make(folder: Path, *more: str) -> list[str]:
        where = ["--text", str(files / "corpus.jsonl"), "--output_dir", str(folder)]
        return ["--config", str(files / "tiny.yaml"), *where, *more]

    return make


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tokenizer", "characters"], ["--tokenizer bpe or unigram"]),
        (["--dataloader_num_workers", "2"], ["leave out --dataloader_num_workers"]),
        (["--validation_documents", "0"], ["--validation_documents is 0"]),
        (["--text", "no/such"], ["no/such is no file, folder or pattern"]),
    ],
)
def test_wrong_flags_are_one_line(flags, tmp_path, capsys, more, words):
    assert_refused(capsys, flags(tmp_path / "run", *more), *words)


# A straight run, and one that is stopped in update 5 and resumed, by the same two processes; with
# what each of them was given to train on. With dropout, two batches to an update, and many windows.
TWO = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from test_recipe import interrupted_at
from groundup.data_scripts import streaming
from groundup.train import gpt, recipe

streaming.WINDOW_CHARACTERS = 200
flags, scratch, seen = json.loads(sys.argv[2]), sys.argv[3], []
training_step = recipe.RunTrainer.training_step

def witness(self, model, inputs, *args):
    seen.append(inputs["input_ids"].tolist())
    return training_step(self, model, inputs, *args)

recipe.RunTrainer.training_step = witness
gpt.main([*flags, f"--output_dir={scratch}/straight"])
with interrupted_at(5):
    gpt.main([*flags, f"--output_dir={scratch}/resumed"])
gpt.main([*flags, f"--output_dir={scratch}/resumed"])
with open(f"{scratch}/seen-{os.environ['RANK']}.json", "w") as file:
    json.dump(seen, file)
"""


def test_two_processes_share_a_stream(flags, tmp_path):
    """Real ones, by `accelerate launch`; stopped and resumed, they end with the same bits."""
    (tmp_path / "two.py").write_text(TWO)
    sizes = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=2"]
    own = flags(Path("unused"), *sizes)
    arguments = [str(Path(__file__).parent), json.dumps(own), str(tmp_path)]
    launcher = ["accelerate.commands.launch", "-q", "--multi_gpu", "--num_processes=2"]
    launcher += ["--main_process_port=0"]  # any that is free
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(tmp_path / "two.py"), *arguments],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shares = []
    for rank in range(2):
        seen = json.loads((tmp_path / f"seen-{rank}.json").read_text())
        straight, stopped, resumed = seen[:12], seen[12:22], seen[22:]
        assert stopped == straight[:10] and resumed == straight[8:]
        shares.append([tuple(block) for batch in straight for block in batch])
    assert not set(shares[0]) & set(shares[1])
    assert [len(set(share)) for share in shares] == [24, 24]  # no block twice
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert_same_bits(straight, resumed)
    for rank in range(2):
        name = f"checkpoint-6/stream_{rank}.json"
        place = json.loads((straight / name).read_text())
        assert place["window"] > 2 and json.loads((resumed / name).read_text()) == place
    logs = []
    for folder in (straight, resumed):
        state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())
        logs.append([(row["step"], row["epoch"], row.get("loss")) for row in state["log_history"]])
    assert logs[0] == logs[1]
