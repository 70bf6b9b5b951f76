"""The Spaces, as their visitors meet them: one process serves them all, without the toolkit.

Each runs from a copy of its folder with a tiny model, is driven by gradio_client, and makes one
journey in headless Chromium.
"""

import ast
import html
import io
import json
import re
import runpy
import shutil
import struct
import threading
import time
import zlib
from concurrent.futures import CancelledError
from itertools import chain
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
)

from groundup.data_scripts.phonemes import phoneme_tokenizer
from groundup.data_scripts.tokenization import train_tokenizer
from groundup.data_scripts.wordpiece import train_wordpiece
from groundup.data_scripts.words import word_tokenizer
from groundup.models.bert import BERTConfig, BERTForMaskedLM, BERTForSequenceClassification
from groundup.models.cnn import CNNConfig, CNNForImageClassification
from groundup.models.gpt import GPTConfig, GPTForCausalLM
from groundup.models.resnet import ResNetConfig, ResNetForImageClassification
from groundup.models.rnn import RNNConfig, RNNForCausalLM
from groundup.models.seq2seq import Seq2SeqConfig, Seq2SeqForConditionalGeneration
from groundup.models.word2vec import Word2VecConfig, Word2VecModel

gradio_client = pytest.importorskip("gradio_client", reason="the Spaces need gradio")
httpx = pytest.importorskip("httpx", reason="gradio_client asks with httpx")

SPACES = Path(__file__).parents[1] / "spaces"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
ROWS = sorted(path.parent.name for path in SPACES.glob("*/app.py"))
TEXT = "ROMEO:\nJULIET: But soft, what light through yonder window breaks? 0123456789\n"
CONTEXT = 32
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


# Configs whose training is still to come: their Spaces need MODEL_ID.
TO_BE_TRAINED = set()


@pytest.mark.parametrize("row", ROWS)
def test_in_a_clone_a_space_finds_its_model(row):
    """What an app.py names are configs, and have been trained, but for those that are known."""
    code = (SPACES / row / "app.py").read_text()
    configs = re.findall(r'(?:config=|from_environment\()"(\w+)"', code)
    root = SPACES.parent
    assert configs
    for config in configs:
        assert (root / "configs" / f"{config}.yaml").is_file()
        trained = (root / "pretrained" / config / "config.json").is_file()
        assert trained is (config not in TO_BE_TRAINED), config


# -------------------------------------------------------------------------------- the one process

# Runs each app.py as `python app.py` does, but goes on when its server stands. What it is given:
# a list of {name, folder, model, revision, sentiment, data, loads}; where to report, to write
# errors, to look for the end.
SERVE = """
import contextlib, io, json, os, runpy, sys, time
from pathlib import Path

import gradio as gr

manifest, report, errors, end = map(Path, sys.argv[1:])
os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
    os.environ.pop(name, None)
launch, urls = gr.Blocks.launch, []


def launch_and_go_on(blocks, **options):
    urls.append(launch(blocks, prevent_thread_lock=True, **options)[1])


gr.Blocks.launch = launch_and_go_on
found = {"pid": os.getpid()}
for entry in json.loads(manifest.read_text()):
    os.chdir(entry["folder"])
    os.environ["MODEL_ID"] = entry["model"]
    os.environ["MODEL_REVISION"] = entry["revision"]
    os.environ["SENTIMENT_MODEL_ID"] = entry["sentiment"]
    os.environ["GROUNDUP_DATA"] = entry["data"]
    for name in ("space", "painting", "pictures", "writing"):
        sys.modules.pop(name, None)
    sys.path.insert(0, entry["folder"])
    said, code = io.StringIO(), None
    with contextlib.redirect_stderr(said) if not entry["loads"] else contextlib.nullcontext():
        try:
            runpy.run_path("app.py", run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    sys.path.remove(entry["folder"])
    found[entry["name"]] = {"said": said.getvalue(), "code": code}
    if entry["loads"]:
        assert code is None, f"{entry['name']} ended with {code}"
        found[entry["name"]]["url"] = urls[-1]
Path(f"{report}.part").write_text(json.dumps(found))
Path(f"{report}.part").rename(report)
while not end.exists():
    time.sleep(0.1)
os._exit(0)  # not after the last visitor has left
"""


def tiny_gpt(folder: Path, kind: str, **config) -> Path:
    """A GPT with random weights, saved with its code and tokenizer."""
    tokenizer = train_tokenizer(kind, TEXT * 20, None if kind == "characters" else 280)
    torch.manual_seed(0)
    model = GPTForCausalLM(
        GPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=8,
            max_position_embeddings=CONTEXT,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    )
    with torch.no_grad():  # it never ends a text by itself
        end = model.model.embed_tokens.weight[tokenizer.eos_token_id].clone()
        model.model.norm.bias.copy_(-20 * end / end.norm())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = {"metrics": {"nats_per_character": 1.5}, "data": {"name": "a test"}}
    (folder / "metrics.json").write_text(json.dumps(run))
    return folder


def tiny_rnn(folder: Path) -> Path:
    """An LSTM with random weights, saved with its code and tokenizer."""
    tokenizer = train_tokenizer("characters", TEXT * 20 + "<&>")
    torch.manual_seed(0)
    size = 24
    config = RNNConfig(vocab_size=len(tokenizer), hidden_size=size, initializer_range=1.0)
    model = RNNForCausalLM(config)
    with torch.no_grad():  # it never ends a text by itself: one unit is always on, and forbids it
        model.model.layers[-1].input_proj.bias[[0, 2 * size, 3 * size]] = 20.0
        model.lm_head.weight[tokenizer.eos_token_id] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = -50.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = {"metrics": {"nats_per_character": 1.5}, "data": {"name": "a test"}}
    (folder / "metrics.json").write_text(json.dumps(run))
    return folder


def tiny_classifier(folder: Path, model) -> Path:
    """A picture classifier with random weights, saved with its code and image processor."""
    for module in model.modules():  # averages as of a model that was trained on something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    model.save_pretrained(folder)
    # By its name alone, so that this process need not import torchvision.
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    run = {"metrics": {"accuracy": 0.5}, "data": {"name": "a test"}}
    (folder / "metrics.json").write_text(json.dumps(run))
    return folder


WORDS = ["king", "man", "woman", "queen", "night", "morning", "brother"]


def tiny_vectors(folder: Path) -> Path:
    """Vectors of a few words, of which king - man + woman is queen."""
    tokenizer = word_tokenizer(["<unk>", *WORDS])
    torch.manual_seed(0)
    model = Word2VecModel(
        Word2VecConfig(vocab_size=len(tokenizer), hidden_size=16, with_contexts=False)
    )
    with torch.no_grad():
        table = torch.nn.functional.normalize(torch.randn(len(tokenizer), 16), dim=1)
        table[4] = table[1] - table[2] + table[3]
        table[0] = 0
        model.embed_tokens.weight.copy_(table)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = {"metrics": {"wordsim353": 0.5}, "data": {"name": "a test"}}
    (folder / "metrics.json").write_text(json.dumps(run))
    return folder


FABLE = """the old man sat by a fire , and told of kings < and of ships
the quick brown fox jumps over the lazy dog ."""


def tiny_bert(folder: Path, model_class, **config) -> Path:
    """A BERT with random weights, saved with its code and tokenizer."""
    tokenizer = train_wordpiece([FABLE], 120, CONTEXT)
    torch.manual_seed(0)
    model = model_class(
        BERTConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.4,
            **config,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = {"metrics": {"masked_accuracy": 0.3, "accuracy": 0.8}, "data": {"name": "a test"}}
    (folder / "metrics.json").write_text(json.dumps(run))
    return folder


SENTENCES = """Ein alter Mann < liest ein Buch vor seinem Haus . Ein Hund rennt durch das Wasser .
An old man reads a book in front of his house . A dog runs through the water , and is wet .
"""


def tiny_translator(folder: Path, attention_type: str, data: str) -> Path:
    """A seq2seq with random weights, saved with its code and tokenizer."""
    tokenizer = train_tokenizer("bpe", SENTENCES * 20, 330)
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        attention_type=attention_type,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )
    model = Seq2SeqForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
        # Bytes by themselves are unlikely, so that it writes what can be read.
        pieces = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
        model.lm_head.weight[[len(x) < 2 or not x.isascii() for x in pieces]] = 0.0
    return saved_translator(folder, model, tokenizer, data)


def tiny_layers(folder: Path) -> Path:
    """A Transformer of transformers' own that knows few characters, and reads up to 32."""
    tokenizer = train_tokenizer("characters", SENTENCES)
    torch.manual_seed(13)  # with which it writes more than one word
    sizes = {f"{x}_{y}": 2 for x in ("encoder", "decoder") for y in ("layers", "attention_heads")}
    ids = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=CONTEXT,
        init_std=0.6,
        forced_eos_token_id=None,
        tie_word_embeddings=False,
        **sizes,
        **dict.fromkeys(ids, tokenizer.eos_token_id),
    )
    model = BartForConditionalGeneration(config)
    return saved_translator(folder, model, tokenizer, "a test")


def saved_translator(folder: Path, model, tokenizer, data: str) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    run = {"metrics": {"bleu": 34.56}, "data": {"name": data}}
    (folder / "metrics.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """What the Spaces are given to load, by `row` or `row-variant`."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(CIFAR10)), "initializer_range": 1.0}
    small = CNNConfig(hidden_sizes=[16, 16, 16], depth=1, logit_scale=1.0, **names)
    cnn = tiny_classifier(folder / "cnn", CNNForImageClassification(small))
    small = ResNetConfig(
        stem="cifar",
        embedding_size=8,
        hidden_sizes=[8, 16, 32],
        depths=[1, 1, 1],
        zero_init_residual=False,
        **names,
    )
    resnet = tiny_classifier(folder / "resnet", ResNetForImageClassification(small))
    bert = tiny_bert(folder / "bert", BERTForMaskedLM)
    return {
        "bert": bert,
        "bert-alone": bert,
        "bert-moods": bert,
        "cnn": cnn,
        "resnet": resnet,
        "resnet-damaged-data": resnet,
        "rnn": tiny_rnn(folder / "rnn"),
        "seq2seq": tiny_translator(folder / "seq2seq", "additive", "multi30k-de-en"),
        "seq2seq-layers": tiny_layers(folder / "seq2seq-layers"),
        "seq2seq-none": tiny_translator(folder / "seq2seq-none", "none", "pig-latin"),
        "word2vec": tiny_vectors(folder / "word2vec"),
        "gpt": tiny_gpt(folder / "gpt", "characters", position_embedding_type="rotary"),
        "gpt-bpe": tiny_gpt(folder / "gpt-bpe", "bpe", position_embedding_type="learned"),
    }


@pytest.fixture(scope="session")
def revision(models) -> str:
    """The second model is on the (stand-in) Hub, and good at this revision only."""
    api = HfApi()
    repository = api.create_repo("spaces-gpt-bpe").repo_id
    good = api.upload_folder(repo_id=repository, folder_path=models["gpt-bpe"])
    for name in ("config.json", "gpt.py", "metrics.json"):
        api.upload_file(repo_id=repository, path_in_repo=name, path_or_fileobj=b"no longer")
    return good.oid


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory) -> dict[str, Path]:
    """The second model of BERT's Space, by the name of the first."""
    classes = {"bert": ["negative", "positive"], "bert-moods": ["sad", "<glad>", "angry"]}
    return {
        name: tiny_bert(
            tmp_path_factory.mktemp("sentiment"),
            BERTForSequenceClassification,
            id2label=dict(enumerate(labels)),
        )
        for name, labels in classes.items()
    }


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, str]:
    """GROUNDUP_DATA by the name of a model; what is not here looks for examples on the Hub."""
    folder = tmp_path_factory.mktemp("data")
    examples = []
    for label in [3, 3, 0, 1, 2, 9, 8, 7, 6, 5, 4]:
        file = io.BytesIO()
        PIL.Image.new("RGB", (32, 32), (20 * label, 99, 250 - 20 * label)).save(file, "PNG")
        examples.append({"img": {"bytes": file.getvalue(), "path": None}, "label": label})
    for name in ("whole", "damaged"):
        (folder / name / "cifar10").mkdir(parents=True)
    file = folder / "whole" / "cifar10" / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(examples), file)
    (folder / "damaged" / "cifar10" / "test.parquet").write_bytes(file.read_bytes()[:100])
    api = HfApi()
    api.create_repo("uoft-cs/cifar10", repo_type="dataset", exist_ok=True)
    api.upload_file(
        repo_id="uoft-cs/cifar10",
        repo_type="dataset",
        path_or_fileobj=file,
        path_in_repo="plain_text/test-00000-of-00001.parquet",
    )
    return {"cnn": str(folder / "whole"), "resnet-damaged-data": str(folder / "damaged")}


@pytest.fixture(scope="session")
def served(fresh_python, models, revision, sentiment, data, tmp_path_factory):
    """All Spaces, running: {name: {url}}, {row-broken: {code, said}}, pid, errors."""
    folder = tmp_path_factory.mktemp("served")
    manifest = []
    for row in ROWS:
        shutil.copytree(SPACES / row, folder / "spaces" / row)
        # One folder up from where it was in the clone, so that no pretrained/ is near.
        entry = {"folder": str(folder / "spaces" / row), "revision": "", "data": ""}
        entry |= {"loads": False, "sentiment": ""}
        manifest.append(entry | {"name": f"{row}-no-folder", "model": str(folder / "nothing")})
        manifest.append(entry | {"name": f"{row}-no-repository", "model": "nobody/nothing"})
        for name in [name for name in models if name.split("-")[0] == row]:
            given = {"name": name, "model": str(models[name]), "loads": True}
            given["data"] = data.get(name, "")
            if name == "gpt-bpe":
                given |= {"model": "user/spaces-gpt-bpe", "revision": revision}
            given["sentiment"] = str(sentiment.get(name, ""))
            manifest.append(entry | given)
            if name == "bert":
                wrong = {"name": "bert-no-sentiment", "sentiment": "nobody/nothing"}
                manifest.append(entry | given | wrong | {"loads": False})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report, errors, end = folder / "report.json", folder / "errors.txt", folder / "end"

    failures = []

    def serve():
        try:
            # Longer than all tests together take on a slow machine; `end` ends it before.
            fresh_python(SERVE, folder / "manifest.json", report, errors, end, timeout=3000)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not report.exists():
            if not thread.is_alive() or time.monotonic() > deadline:
                said = errors.read_text() if errors.exists() else ""
                pytest.fail(f"the Spaces do not start: {failures}\n{said}")
            time.sleep(0.1)
        yield json.loads(report.read_text()) | {"errors": errors}
    finally:
        end.touch()
        thread.join()


# ------------------------------------------------------------------------------------- the folders


def front_matter(row: str) -> dict:
    return yaml.safe_load((SPACES / row / "README.md").read_text().split("---\n")[1])


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("row", ROWS)
def test_front_matter(row):
    card = front_matter(row)
    required = """title emoji colorFrom colorTo sdk sdk_version python_version app_file license
        models tags short_description"""
    assert set(required.split()) <= set(card)
    assert card["sdk"] == "gradio" and card["license"] == "apache-2.0"
    assert card["sdk_version"] == pins(CONSTRAINTS)["gradio"]
    assert re.fullmatch(r"3\.\d+", card["python_version"])  # a string: 3.10 is no number
    assert (SPACES / row / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60  # the Hub takes no more
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colors
    for names in (card["models"], card["tags"]):
        assert all(isinstance(name, str) for name in names)


@pytest.mark.parametrize("row", ROWS)
def test_a_space_stands_alone(row):
    """Its requirements are those that were tested together, and it imports nothing else."""
    required = pins(SPACES / row / "requirements.txt")
    known = pins(CONSTRAINTS)
    assert required == {name: known[name] for name in required}
    for path in (SPACES / row).glob("*.py"):
        if path.name != "app.py":
            assert path.read_bytes() == (SPACES / path.name).read_bytes(), "run make spaces"
    standard = {
        "collections",
        "contextlib",
        "difflib",
        "threading",
        "dataclasses",
        "html",
        "json",
        "math",
        "os",
        "pathlib",
        "sys",
    }
    standard |= {"time", "io", "functools", "itertools", "random", "re"}
    shared = {path.stem for path in SPACES.glob("*.py")}
    for path in (SPACES / row).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} is no part of a package"
                names = [node.module]
            for name in names:
                name = {"PIL": "pillow"}.get(name.partition(".")[0], name.partition(".")[0])
                assert name in {*required, *standard, *shared}, name


@pytest.mark.parametrize("row", ROWS)
def test_a_model_that_is_not_there(served, row):
    for name in (f"{row}-no-folder", f"{row}-no-repository"):
        assert served[name]["code"] == 2
        (line,) = served[name]["said"].strip().splitlines()
        assert line.startswith("cannot load the model ") and "MODEL_ID" in line, line


def test_what_is_served(served, models):
    """To this machine only; with the facts of the model that was asked for."""
    for name in models:
        assert urlparse(served[name]["url"]).hostname == "127.0.0.1"
        page = httpx.get(f"{served[name]['url']}config").text
        nats = "**1.500** nats per character"
        scores = {"gpt": nats, "rnn": nats, "word2vec": "WordSim-353 **0.500**"}
        scores["bert"] = "right on **30.0%** of the blanks in the validation text of a test"
        scores["seq2seq"] = "BLEU **34.6** on "
        assert scores.get(name.split("-")[0], "**50.0%** of pictures of a test that it") in page


def test_what_is_too_large_is_not_taken(served):
    """At the door, so that nobody fills the disk of a Space."""
    for row in ROWS:
        with io.BytesIO(bytes(21_000_000)) as file:
            response = httpx.post(f"{served[row]['url']}gradio_api/upload", files={"files": file})
        assert response.status_code == 413


# ------------------------------------------------------------------------------------ word vectors


@pytest.fixture(scope="session")
def vectors(served):
    client = gradio_client.Client(served["word2vec"]["url"], verbose=False)
    return lambda name, *inputs: client.predict(*inputs, api_name=f"/{name}")


def test_neighbours_and_analogies(vectors, models, no_traceback):
    model = Word2VecModel.from_pretrained(models["word2vec"])
    unit = torch.nn.functional.normalize(model.embed_tokens.weight.detach()[1:], dim=1)
    cosines = unit @ unit[WORDS.index("night")]
    expected = [(WORDS[i], cosines[i].item()) for i in cosines.argsort(descending=True)[1:4]]
    found = vectors("neighbours", " NIGHT ", 3)["data"]
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert [value for _, value in found] == pytest.approx([v for _, v in expected], abs=1e-3)
    assert len(vectors("neighbours", "night", 30)["data"]) == len(WORDS) - 1
    assert vectors("analogy", "king", "man", "woman", 1)["data"][0][0] == "queen"


def test_a_map_of_words(vectors, no_traceback):
    drawn = vectors("map", "king, queen man woman qwerty")
    assert drawn["type"] == "matplotlib" and drawn["plot"].startswith("data:image/")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("neighbours", "quen", 3), "no vector for quen. Did you mean queen?"),
        (("neighbours", "zzzzzz", 3), "Try a commoner one"),
        (("neighbours", "two words", 3), "needs one word"),
        (("neighbours", "", 3), "needs one word"),
        (("neighbours", "qu\N{LATIN SMALL LETTER E WITH ACUTE}en", 3), "to z. Did you mean queen?"),
        (("neighbours", "O\N{RIGHT SINGLE QUOTATION MARK}Clock", 3), "no vector for o'clock."),
        (("neighbours", "x" * 60, 3), "at most 50"),
        (("neighbours", "king", 31), "from 1 to 30"),
        (("analogy", "king", "man", "womann", 3), "Did you mean woman"),
        (("map", "king queen"), "from 3 to 60"),
        (("map", "king queen \N{LATIN SMALL LETTER A WITH CIRCUMFLEX}man"), "these are 2"),
        (("map", "king " * 200), "at most 600"),
    ],
)
def test_words_that_will_not_do(vectors, asked, message, no_traceback):
    with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)):
        vectors(*asked)


# ---------------------------------------------------------------------------------------- Tiny GPT

DEFAULTS = {
    "prompt": "ROMEO:\n",
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "length": 20,
    "seed": 1,
}


class Visitor:
    """Somebody who calls a Space."""

    def __init__(self, url: str):
        self.client = gradio_client.Client(url, verbose=False)
        self.warnings, self.updates = [], []

    def submit(self, **changes):
        return self.client.submit(*(DEFAULTS | changes).values(), api_name="/write")

    def write(self, **changes) -> str:
        return self.result(self.submit(**changes))

    def result(self, job):
        """What a call gives; then, what was shown on the way and what was warned of."""
        result = job.result(timeout=300)
        self.updates = job.outputs()
        self.warnings = []
        while not job.communicator.updates.empty():
            update = job.communicator.updates.get_nowait()
            if getattr(update, "log", None):
                self.warnings.append(update.log[0])
        return result


@pytest.fixture(scope="session")
def gpt(served):
    return Visitor(served["gpt"]["url"])


@pytest.fixture(scope="session")
def bpe(served):
    return Visitor(served["gpt-bpe"]["url"])


@pytest.fixture
def no_traceback(served):
    """Nothing went wrong behind the visitor's back."""
    before = len(served["errors"].read_text())
    yield
    assert served["errors"].read_text()[before:] == ""


def test_writing_is_streamed_and_seeded(gpt, no_traceback):
    text = gpt.write(length=300)
    assert text.startswith("ROMEO:\n") and len(text) == len("ROMEO:\n") + 300
    assert not gpt.warnings
    assert len(gpt.updates) > 2
    for update in gpt.updates:
        assert text.startswith(update)
    assert gpt.write(length=300) == text
    assert gpt.write(length=300, seed=2) != text


@torch.no_grad()
def expected(folder: Path, prompt: str, length: int) -> str:
    """The likeliest text, worked out without a cache: a full context goes on from its 2nd half."""
    model = GPTForCausalLM.from_pretrained(folder)
    tokenizer = train_tokenizer("characters", TEXT) if folder.name == "gpt" else None
    tokenizer = tokenizer or train_tokenizer("bpe", TEXT * 20, 280)
    text = tokenizer(prompt).input_ids
    window = list(text) or [tokenizer.bos_token_id]
    for _ in range(length):
        if len(window) > CONTEXT:
            window = window[-CONTEXT // 2 :]
        token = int(model(torch.tensor([window])).logits[0, -1].argmax())
        text.append(token)
        window.append(token)
    return tokenizer.decode(text)


@pytest.mark.parametrize("prompt", ["ROMEO:\n", "", "light " * 20])
def test_the_likeliest_text_beyond_the_context(gpt, bpe, models, prompt, no_traceback):
    """Also where positions are learned, so that a text beyond the context is an error."""
    for visitor, folder in ((gpt, models["gpt"]), (bpe, models["gpt-bpe"])):
        text = visitor.write(prompt=prompt, temperature=0, length=80)
        assert text == expected(folder, prompt, 80)
    assert gpt.write(prompt=prompt, top_k=1, length=80) == gpt.write(
        prompt=prompt, top_p=0, temperature=2, length=80
    )


@torch.no_grad()
def test_the_draw(gpt, models, no_traceback):
    """top-k and top-p leave the likeliest characters, and all of them."""
    model = GPTForCausalLM.from_pretrained(models["gpt"])
    tokenizer = train_tokenizer("characters", TEXT)
    ids = torch.tensor([tokenizer("ROMEO:\n").input_ids])
    likely = (model(ids).logits[0, -1] / 2).softmax(-1).sort(descending=True)
    names = [tokenizer.decode([int(token)]) for token in likely.indices]

    def drawn(**settings):
        return {gpt.write(temperature=2, length=1, seed=seed, **settings)[7:] for seed in range(12)}

    assert drawn(top_k=2) == set(names[:2])
    # Enough for the first alone, and a little more: so the second is in the draw, the third is not.
    assert drawn(top_p=round(float(likely.values[0]) + 0.01, 3)) == set(names[:2])
    assert len(drawn()) > 2


REFUSED = {
    "prompt": ["x" * 501],
    "temperature": [100, -1, "hot", "nan", [], None],
    "top_k": [-1, 1.5, 10**30],
    "top_p": [1.1, -0.1],
    "length": [0, 10**9],
    "seed": [-1, 2**40, None],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_out_of_bounds_is_refused_in_one_sentence(gpt, name, no_traceback):
    for value in REFUSED[name]:
        label = name.capitalize().replace("_", " ")
        with pytest.raises(gradio_client.exceptions.AppError, match=f"^(The )?{label} (is|has) "):
            gpt.write(**{name: value})
    assert gpt.write(length=1).startswith("ROMEO:")


def sent(visitor: Visitor, api_name: str, data: str) -> str:
    """The answer to inputs, in JSON, that gradio_client sends none of, but others may."""
    api = f"{visitor.client.src}gradio_api"
    endpoints = visitor.client.config["dependencies"]
    fn_index = next(found["id"] for found in endpoints if found["api_name"] == api_name)
    session = {"session_hash": f"raw{hash(data)}"}
    body = json.dumps(session | {"fn_index": fn_index, "data": "HERE"})
    response = httpx.post(
        f"{api}/queue/join",
        content=body.replace('"HERE"', data),
        headers={"content-type": "application/json"},
    )
    response.raise_for_status()
    return httpx.get(f"{api}/queue/data", params=session, timeout=120).text


def test_numbers_that_json_does_not_know(gpt, no_traceback):
    for number in ("NaN", "1e999", "-Infinity"):
        assert "Temperature is" in sent(gpt, "write", f'["a", {number}, 0, 1, 5, 1]')


def test_prompts_of_all_sorts(gpt, bpe, no_traceback):
    assert len(gpt.write(prompt="")) == 20
    assert not gpt.warnings
    assert gpt.write(prompt=None) == gpt.write(prompt="")

    # What the tokenizer does not know is left out, and named; as text, though a browser shows HTML.
    assert gpt.write(prompt="R\r\nO<é😀<|endoftext|>").startswith("R\nO")
    (warning,) = gpt.warnings
    assert "é 😀" in warning and "&lt;" in warning and "<" not in warning
    assert gpt.write(prompt="é") == gpt.write(prompt="")

    # Bytes know all characters, though they may not yet be whole.
    assert bpe.write(prompt="é😀", length=100).startswith("é😀")
    assert not bpe.warnings

    text = gpt.write(prompt="light " * 80)
    assert text.startswith("light " * 80) and len(text) == 500
    assert gpt.warnings == ["The model reads only the last 16 of the prompt's 480 tokens."]


def test_stop_ends_the_computation(served, gpt, no_traceback):
    import psutil

    process = psutil.Process(served["pid"])

    def seconds():
        used = process.cpu_times()
        return used.user + used.system

    before = seconds()
    gpt.write(length=1000)
    whole = seconds() - before

    before = seconds()
    job = gpt.submit(length=1000)
    while not job.outputs():
        time.sleep(0.01)
    assert not job.done()
    job.cancel()
    with pytest.raises((CancelledError, KeyError)):  # the client gives either, as it happens
        job.result(timeout=10)
    assert gpt.write(length=1).startswith("ROMEO:")  # one at a time: it waits for the first to end
    time.sleep(0.5)
    assert seconds() - before < whole / 2
    assert len(job.outputs()[-1]) < 800


def test_one_visitor_at_a_time(gpt, no_traceback):
    order, jobs = [], {}
    for name, length in (("long", 1000), ("short", 100)):
        jobs[name] = gpt.submit(length=length)
        jobs[name].add_done_callback(lambda _, name=name: order.append(name))
        while not jobs["long"].outputs():  # calls are sent by threads, in whatever order
            time.sleep(0.01)
    assert len(jobs["short"].result(timeout=300)) == 107
    assert len(jobs["long"].result(timeout=300)) == 1007
    assert order == ["long", "short"]


# ------------------------------------------------------------------------------ picture classifiers

PICTURES = ["cnn", "resnet"]
DAMAGED = r"This (\w+) file is damaged, or of an uncommon kind; save it anew as"
NO_PICTURE = "This is no picture that can be read here; save it as JPEG or PNG"


class Beholder(Visitor):
    """Somebody who shows pictures to a Space."""

    def classify(self, path: Path | None):
        """({name: probability}, names on offer, what was seen, where it looked, legend)."""
        file = path and gradio_client.handle_file(path)
        top, offer, seen, shown, legend = self.result(
            self.client.submit(file, api_name="/classify")
        )
        top = {x["label"]: x["confidence"] for x in top.get("confidences", [])}
        names = [name for name, _ in offer["choices"]]
        assert offer["value"] == next(iter(names), None)
        return top, names, seen and pixels(seen), shown and pixels(shown), legend

    def explain(self, path: Path, name: str):
        """(where it looked, legend)."""
        file = gradio_client.handle_file(path)
        shown, legend = self.result(self.client.submit(file, name, api_name="/explain"))
        return pixels(shown), legend

    def sees(self, path: Path):
        """(32, 32, 3) colours."""
        return self.classify(path)[2][5::10, 5::10]


def pixels(picture) -> np.ndarray:
    """A picture, or its file, as (height, width, 3) numbers."""
    if not isinstance(picture, PIL.Image.Image):
        picture = PIL.Image.open(picture)
    return np.asarray(picture.convert("RGB")).astype(float)


@pytest.fixture(scope="session")
def beholders(served):
    return {row: Beholder(served[row]["url"]) for row in PICTURES}


@pytest.fixture(scope="session")
def photo():
    """Noise of 32 x 32 pixels, one half of which is dark."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    noise[:, :16] //= 4
    return PIL.Image.fromarray(noise)


def grad_cam(folder: Path, photo, name: str):
    """({name: probability}, (y, x) evidence), worked out by a backward pass through the model."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    colours = torch.tensor(pixels(photo)).float() / 255
    normal = (colours - torch.tensor(settings["image_mean"])) / torch.tensor(settings["image_std"])
    output = model(normal.permute(2, 0, 1)[None], output_hidden_states=True)
    (grid,) = [x for x in output.hidden_states if x.shape[-1] in (7, 8)]
    grid.retain_grad()
    output.logits[0, CIFAR10.index(name)].backward()
    evidence = torch.einsum("c,cyx->yx", grid.grad[0].mean((1, 2)), grid[0]).clamp_min(0)
    chances = output.logits[0].softmax(-1).tolist()
    return dict(zip(CIFAR10, chances, strict=True)), evidence.detach().numpy()


@pytest.mark.parametrize("row", PICTURES)
def test_a_picture_is_named_and_explained(beholders, models, photo, row, tmp_path, no_traceback):
    photo.save(tmp_path / "photo.png")
    top, names, seen, shown, legend = beholders[row].classify(tmp_path / "photo.png")
    chances, _ = grad_cam(models[row], photo, names[0])
    assert names == list(top) == sorted(chances, key=chances.get, reverse=True)[:5]
    assert top == pytest.approx({name: chances[name] for name in names}, abs=1e-5)
    assert (seen == pixels(photo).repeat(10, 0).repeat(10, 1)).all()
    assert f"<b>{names[0]}</b>" in legend and not beholders[row].warnings

    maps = {name: beholders[row].explain(tmp_path / "photo.png", name) for name in CIFAR10}
    assert (maps[names[0]][0] == shown).all() and maps[names[0]][1] == legend
    assert len({x.tobytes() for x, _ in maps.values()}) > 5
    for name, (map_, key) in maps.items():
        _, evidence = grad_cam(models[row], photo, name)
        assert ("linear-gradient" in key) == (evidence.max() > 0)
        if evidence.max() > 0:  # brightest, apart from the grey picture below, where there is most
            heat = (map_ - 0.4 * pixels(photo.convert("L")).repeat(10, 0).repeat(10, 1)).sum(-1)
            side = len(evidence)
            at = (np.arange(320) * side) // 320
            cells = np.array(
                [[heat[at == y][:, at == x].mean() for x in range(side)] for y in range(side)]
            )
            assert np.corrcoef(cells.ravel(), evidence.ravel())[0, 1] > 0.8


def test_pictures_of_all_kinds(beholders, photo, tmp_path, no_traceback):
    visitor = beholders["resnet"]

    def sees(name, picture, **options):
        picture.save(tmp_path / name, **options)
        return visitor.sees(tmp_path / name)

    for name in ("a.png", "a.webp", "a.bmp", "a.tiff"):
        options = {"lossless": True} if name == "a.webp" else {}
        assert (sees(name, photo, **options) == pixels(photo)).all(), name
    for name, kind in (("a.jpg", "RGB"), ("a.avif", "RGB"), ("cmyk.jpg", "CMYK"), ("a.gif", "P")):
        assert np.abs(sees(name, photo.convert(kind)) - pixels(photo)).mean() < 40, name
    grey = photo.convert("L")
    assert (sees("grey.png", grey) == pixels(grey)).all()
    deep = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert (sees("deep.png", deep) == pixels(grey)).all()
    assert sees("bits.png", photo.convert("1")).max() == 255

    turned = PIL.Image.Exif()
    turned[274] = 6  # to be turned by 90 degrees to the right
    assert (sees("turned.png", photo.rotate(90), exif=turned) == pixels(photo)).all()
    assert (sees("nonsense.png", photo, exif=b"nonsense") == pixels(photo)).all()

    wide = PIL.Image.new("RGB", (96, 32), "red")
    wide.paste(photo, (32, 0))
    assert (sees("wide.png", wide) == pixels(photo)).all()
    for size in ((1, 1), (1, 3000), (3, 2)):
        assert (sees("odd.png", PIL.Image.new("RGB", size, "red")) == (255, 0, 0)).all()
    small_copy = {"save_all": True, "append_images": [photo.resize((9, 9))]}
    sees("telephone.jpg", photo, format="MPO", **small_copy)
    assert not visitor.warnings


def test_pictures_that_move_and_that_are_transparent(beholders, photo, tmp_path, no_traceback):
    visitor = beholders["cnn"]
    for kind in ("gif", "png", "webp"):
        frames = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
        photo.save(tmp_path / f"moves.{kind}", **frames)
        visitor.sees(tmp_path / f"moves.{kind}")
        assert visitor.warnings == ["The file holds several pictures; the network sees the first."]
    glass = photo.convert("RGBA")
    glass.paste((0, 0, 0, 0), (0, 0, 32, 16))
    glass.save(tmp_path / "glass.png")
    seen = visitor.sees(tmp_path / "glass.png")
    assert visitor.warnings == ["What is transparent in the picture is shown on white."]
    assert (seen[:16] == 255).all() and (seen[16:] == pixels(photo)[16:]).all()
    palette = photo.convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    assert (visitor.sees(tmp_path / "palette.png")[0, 0] == 255).all()


def empty_png(width: int, height: int) -> bytes:
    """A small file that claims to hold so many pixels."""
    chunks = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")):
        crc = zlib.crc32(kind + data)
        chunks += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", crc)]
    return b"".join(chunks)


def test_files_that_are_no_pictures(beholders, photo, tmp_path, no_traceback):
    files = {
        "empty.png": (b"", "This file is empty"),
        "text.png": (b"hello", NO_PICTURE),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_PICTURE),
        "telephone.heic": (b"\0\0\0\x18ftypheic" + bytes(99), NO_PICTURE),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_PICTURE),
        "large.png": (empty_png(10_000, 5_001), "This picture has more than 50 million pixels"),
        "bomb.png": (empty_png(60_000, 60_000), "This picture has more than 50 million pixels"),
    }
    for kind in ("png", "jpeg", "gif", "bmp"):
        photo.save(tmp_path / "whole", kind)
        whole = (tmp_path / "whole").read_bytes()
        files[f"cut.{kind}"] = (whole[: len(whole) * 9 // 10], DAMAGED)
    number = PIL.Image.fromarray(np.zeros((9, 9), np.float32))
    number.save(tmp_path / "whole", "TIFF")
    files["numbers.tiff"] = ((tmp_path / "whole").read_bytes(), DAMAGED)
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(gradio_client.exceptions.AppError, match=rf"^{message}"):
            beholders["cnn"].classify(tmp_path / name)

    photo.save(tmp_path / "photo.png")
    with pytest.raises(gradio_client.exceptions.AppError, match=r"^The classes are: airplane,"):
        beholders["cnn"].explain(tmp_path / "photo.png", "<unicorn>")
    assert beholders["cnn"].classify(None) == ({}, [], None, None, "")
    assert beholders["cnn"].classify(tmp_path / "photo.png")[0]


def test_examples_from_the_folder_or_the_hub_or_none(served):
    for name in ("cnn", "resnet", "resnet-damaged-data"):
        components = httpx.get(f"{served[name]['url']}config").json()["components"]
        (gallery,) = [x["props"] for x in components if x["type"] == "gallery"]
        found = [x["caption"] for x in gallery["value"] or []]
        assert found == ([] if "damaged" in name else CIFAR10)
        assert gallery["visible"] == bool(found)
    assert served["errors"].read_text().count("no example pictures of CIFAR-10 (Arrow") == 1


# ----------------------------------------------------------------------------------- Character RNN


@pytest.fixture(scope="session")
def rnn(served):
    return Visitor(served["rnn"]["url"])


def test_a_recurrent_network_writes_on_without_end(rnn, no_traceback):
    """Far past any context: its state goes on."""
    text = rnn.write(prompt="ROMEO:", length=200)
    assert text.startswith("ROMEO:") and not rnn.warnings
    assert rnn.write(prompt="ROMEO:", length=200) == text
    assert rnn.write(prompt="ROMEO#:", length=1).startswith("ROMEO:")
    assert rnn.warnings == ["Left out, because the model has never seen them: #"]


def test_a_unit_is_painted_over_a_text(rnn, models, no_traceback):
    """With what the model says of it, and nothing that a visitor writes is HTML."""
    text = "ROMEO:\nJULIET: But soft"
    page = rnn.client.predict(text, 2, 7, api_name="/paint")
    spans = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)\">([^<]*)</span>", page)
    assert "".join(piece for *_, piece in spans) == text
    model = AutoModelForCausalLM.from_pretrained(models["rnn"])
    tokenizer = AutoTokenizer.from_pretrained(models["rnn"])
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
    values = model(ids, output_hidden_states=True).hidden_states[2][0, 1:, 6].tolist()
    found = [float(a) * (1 if red == "234" else -1) for red, a, piece in spans for _ in piece]
    assert found == pytest.approx(values, abs=0.026)
    assert rnn.client.predict(text, 1, 7, api_name="/paint") != page

    assert "Nothing to read" in rnn.client.predict("", 1, 1, api_name="/paint")
    page = rnn.client.predict("<b>&", 1, 1, api_name="/paint")
    assert "&lt;" in page and "&amp;" in page and not re.search("<(?!/?(div|span))", page)
    for wrong, message in (
        (("a" * 2001, 1, 1), "To read has 2001 characters"),
        ((text, 3, 1), "Layer is 3; it must be a whole number from 1 to 2"),
        ((text, 1, 25), "Unit is 25; it must be a whole number from 1 to 24"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=message):
            rnn.client.predict(*wrong, api_name="/paint")


# ------------------------------------------------------------------------------------------- BERT


class Asker(Visitor):
    """Somebody who has texts read."""

    def ask(self, name: str, text: str | None):
        return self.result(self.client.submit(text, api_name=f"/{name}"))


@pytest.fixture(scope="session")
def bert(served):
    return Asker(served["bert"]["url"])


def shares(label: dict) -> dict[str, float]:
    """What a `gr.Label` shows."""
    return {entry["label"]: entry["confidence"] for entry in label.get("confidences", [])}


def colours(page: str) -> list[tuple[str, float]]:
    """The pieces of a painted text and their values."""
    text = page.partition('<div class="legend">')[0]
    spans = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)\">([^<]*)</span>", text)
    return [
        (html.unescape(piece), float(alpha) * (1 if red == "234" else -1))
        for red, alpha, piece in spans
    ]


@torch.no_grad()
@pytest.mark.parametrize("blanks", [1, 2, 4])
def test_blanks_are_filled_in(bert, models, blanks, no_traceback):
    """Also one that is written small, or twice in a row."""
    text = {
        1: "The old [MASK] sat <by",
        2: "A < and [mask][Mask].",
        4: "[MASK], [MASK] <\n[MASK]s old [MASK]",
    }[blanks]
    page, *found = bert.ask("fill", text)
    model = AutoModelForMaskedLM.from_pretrained(models["bert"])
    tokenizer = AutoTokenizer.from_pretrained(models["bert"])
    ids = tokenizer(re.sub(r"(?i)\[mask\]", "[MASK]", text), return_tensors="pt").input_ids
    logits = model(ids).logits[ids == tokenizer.mask_token_id]
    assert len(found) == 4 and not any(found[blanks:]) and len(logits) == blanks
    best = []
    for guesses, scores in zip(found, logits, strict=False):
        top = scores.softmax(-1).topk(5)
        tokens = tokenizer.convert_ids_to_tokens(top.indices.tolist())
        expected = dict(zip(tokens, top.values.tolist(), strict=True))
        assert shares(guesses) == pytest.approx(expected, abs=1e-5)
        best.append(tokens[0])
    expected = re.sub(r"(?i)\[mask\]", lambda _: best.pop(0), text)
    assert "".join(piece for piece, _ in colours(page)) == expected
    assert max(value for _, value in colours(page)) >= 0.15 and "&lt;" in page
    assert not bert.warnings


@torch.no_grad()
def test_the_words_that_decide(bert, sentiment, no_traceback):
    """Against the model, asked of one text after the other."""
    words, gaps = ["The", "old", "kingships", ",", ">", "man", "."], [" ", " ", "", " ", "", "", ""]
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    classes, page, table = bert.ask("judge", text)
    model = AutoModelForSequenceClassification.from_pretrained(sentiment["bert"])
    tokenizer = AutoTokenizer.from_pretrained(sentiment["bert"])

    def scores(pieces):
        ids = tokenizer.convert_tokens_to_ids(["[CLS]", *pieces, "[SEP]"])
        return model(torch.tensor([ids])).logits[0]

    pieces = [tokenizer.tokenize(word) for word in words]
    assert len(pieces[2]) > 1  # all of which are taken away together
    whole = scores(chain(*pieces))
    effects = {}
    for i, word in enumerate(words):
        some = [["[MASK]"] * len(x) if i == j else x for j, x in enumerate(pieces)]
        negative, positive = (whole - scores(chain(*some))).tolist()
        effects[word] = positive - negative
    chances = dict(zip(["negative", "positive"], whole.softmax(-1).tolist(), strict=True))
    assert shares(classes) == pytest.approx(chances, abs=1e-5)
    largest = sorted(effects, key=lambda word: -abs(effects[word]))[:5]
    assert [word for word, _ in table["data"]] == largest
    found = [float(value) for _, value in table["data"]]
    assert found == pytest.approx([effects[word] for word in largest], abs=0.006)
    painted = [value for piece, value in colours(page) for _ in piece]
    assert "".join(piece for piece, _ in colours(page)) == text
    for word, effect in effects.items():
        expected = max(-1, min(1, effect / 2))
        assert painted[text.index(word)] == pytest.approx(expected, abs=0.026)
    assert "decides for negative" in page and "for positive" in page
    # ">" is no letter of its training text.
    assert bert.warnings == ["The model has never seen these, and reads [UNK] in their place: &gt;"]


@torch.no_grad()
def test_of_several_classes_the_likeliest_is_decided_for(served, sentiment, no_traceback):
    asker = Asker(served["bert-moods"]["url"])
    classes, page, table = asker.ask("judge", "an old")
    model = AutoModelForSequenceClassification.from_pretrained(sentiment["bert-moods"])
    tokenizer = AutoTokenizer.from_pretrained(sentiment["bert-moods"])
    chances = {}
    for text in ("an old", "[MASK] old", "an [MASK]"):
        inputs = tokenizer(text, return_tensors="pt")
        found = model(**inputs).logits[0].softmax(-1)
        chances[text] = dict(zip(["sad", "<glad>", "angry"], found, strict=True))
    best = max(chances["an old"], key=chances["an old"].get)
    odds = {text: (found[best] / (1 - found[best])).log() for text, found in chances.items()}
    assert shares(classes)[best] == pytest.approx(chances["an old"][best].item(), abs=1e-5)
    found = {word: float(value) for word, value in table["data"]}
    for word, text in (("an", "[MASK] old"), ("old", "an [MASK]")):
        assert found[word] == pytest.approx((odds["an old"] - odds[text]).item(), abs=0.006)
    assert f"decides for not {html.escape(best)}" in page


def test_what_bert_does_not_read(bert, no_traceback):
    page, *_ = bert.ask("fill", "an old [MASK] " * 3 + "and so on " * 20)
    assert bert.warnings == ["The model reads only the first 30 word pieces of this text."]
    assert colours(page)[-1][0].endswith("and so on ")  # what is not read is shown
    _, _, table = bert.ask("judge", "the " * 80)
    assert {word for word, _ in table["data"]} == {"the"} and len(bert.warnings) == 1
    bert.ask("fill", "\N{SNOWMAN} \N{SNOWMAN} [MASK]")
    assert bert.warnings[0].endswith("in their place: \N{SNOWMAN}")
    accents = bert.ask("judge", "\N{LATIN CAPITAL LETTER A WITH GRAVE}n OLD m\xe4n")[0]
    assert shares(accents) == shares(bert.ask("judge", "an old man")[0])


NO_BLANK = r"Write \[MASK\] where a word is missing, or press"
UNKNOWN = "The model knows none of these words; write in the language"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("fill", "", NO_BLANK),
        ("fill", None, NO_BLANK),
        ("fill", "an old man", NO_BLANK),
        ("fill", "an old [MASK", NO_BLANK),
        ("fill", "\0", NO_BLANK),
        ("fill", "\N{SNOWMAN} \N{HIRAGANA LETTER A}", UNKNOWN),
        ("fill", "[mask]" * 5, "There are 5 blanks; write at most 4"),
        ("fill", "old " * 40 + "[MASK]", r"No \[MASK\] is in what the model reads"),
        ("fill", "a" * 501, r"Text with \[MASK\] has 501 characters"),
        ("judge", " \n", "Write a sentence first"),
        ("judge", "[MASK] [MASK]", "Write a sentence first"),
        ("judge", "\N{HIRAGANA LETTER A}" * 500, UNKNOWN),
        ("judge", "a" * 501, "Sentence has 501 characters"),
        ("hide", "?! [MASK]", "There is no word here"),
        ("hide", "a " * 250, "There is no word here"),  # [MASK] would be too long
        ("hide", "an [MASK][MASK][MASK][MASK]", "There are 4 blanks already"),
    ],
)
def test_texts_that_will_not_do(bert, name, text, message, no_traceback):
    with pytest.raises(gradio_client.exceptions.AppError, match=f"^{message}"):
        bert.ask(name, text)


def test_a_word_is_hidden(bert, no_traceback):
    text = words = "an old man told of kings"
    for count in range(1, 5):
        text = bert.ask("hide", text)
        found = [word for word in text.split() if word != "[MASK]"]
        assert text.count("[MASK]") == count and len(found) == 6 - count
        assert set(found) < set(words.split())


def test_without_a_second_model_bert_only_fills_in(served, sentiment):
    components = httpx.get(f"{served['bert-alone']['url']}config").json()
    assert "names it with `SENTIMENT_MODEL_ID`" in json.dumps(components["components"])
    names = {found["api_name"] for found in components["dependencies"]}
    assert "fill" in names and "judge" not in names
    page = httpx.get(f"{served['bert']['url']}config").text
    assert "right on **80.0%** of the validation sentences of a test" in page
    assert served["bert-no-sentiment"]["code"] == 2
    said = served["bert-no-sentiment"]["said"].strip().splitlines()[-1]
    assert said.startswith("cannot load the model nobody/nothing") and "SENTIMENT_MODEL_ID" in said


# ----------------------------------------------------------------------------------------- Seq2seq


class Reader(Visitor):
    """Somebody who has texts translated."""

    def translate(self, text, beams=3, by_token=False):
        """(text, page, [[text, score]])."""
        job = self.client.submit(text, beams, by_token, api_name="/translate")
        text, page, kept = self.result(job)
        return text, page, kept["data"]


@pytest.fixture(scope="session")
def readers(served):
    names = ("seq2seq", "seq2seq-layers", "seq2seq-none")
    return {name: Reader(served[name]["url"]) for name in names}


def seen(page: str) -> tuple[list[str], list[str], torch.Tensor]:
    """The names of the rows of a map, of its columns, and its cells."""
    columns = re.findall(r'<th scope="col"><span>(.*?)</span>', page)
    rows = re.findall(r'<th scope="row">(.*?)</th>', page)
    looks = [float(x) for x in re.findall(r"--look: ([\d.]+)", page)]
    names = ([html.unescape(name) for name in found] for found in (rows, columns))
    return *names, torch.tensor(looks).view(len(rows), len(columns))


def groups(words: list[str], tokens: list[str]) -> list[list[int]]:
    """Which of a text's tokens make which of its words."""
    left, found = list(range(len(tokens))), []
    for word in words:
        found.append([left.pop(0)])
        while "".join(tokens[i] for i in found[-1]).strip("␣") != word:
            found[-1].append(left.pop(0))
    assert not left
    return found


def test_capitals_are_read_as_small_letters_where_those_are_the_spelling(tmp_path, monkeypatch):
    tokenizer = phoneme_tokenizer()
    ids = {f"{name}_token_id": tokenizer.eos_token_id for name in ("pad", "bos", "eos")}
    config = Seq2SeqConfig(
        vocab_size=len(tokenizer), hidden_size=8, decoder_start_token_id=0, **ids
    )
    monkeypatch.syspath_prepend(SPACES / "seq2seq")
    app = runpy.run_path(str(SPACES / "seq2seq" / "app.py"))
    writer = app["writing"].Writer(Seq2SeqForConditionalGeneration(config).eval(), tokenizer)
    read = app["Translator"](writer).read("Read AH")
    assert [piece for _, piece in read] == ["r", "e", "a", "d", "a", "h"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["seq2seq", "seq2seq-layers"])
def test_a_translation_and_where_the_model_looked(readers, models, name, no_traceback):
    """Against what `generate` says of its beams, step by step."""
    text = "Ein Hund <rennt.> Ein Mann"
    model = AutoModelForSeq2SeqLM.from_pretrained(models[name], attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(models[name])
    if name == "seq2seq-layers":
        text = text.replace(">", "")  # which it does not know
    ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt").input_ids
    length = 31 if name == "seq2seq-layers" else 20 + 10 * ids.shape[1]
    found = model.generate(
        ids,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=length,
        return_dict_in_generate=True,
        output_scores=True,
        output_attentions=True,
    )
    texts = [x.strip() for x in tokenizer.batch_decode(found.sequences, skip_special_tokens=True)]
    written, page, kept = readers[name].translate(f" {text}\n", by_token=True)
    assert written == kept[0][0] and [x for x, _ in kept] == texts and len(set(texts)) == 3
    scores = found.sequences_scores.tolist()
    assert [score for _, score in kept] == pytest.approx(scores, abs=6e-4)

    rows, columns, looks = seen(page)
    assert "".join(columns) == text.replace(" ", "␣") + "(end)"
    assert "".join(rows).replace("␣", " ").removesuffix("(end)").strip() == written
    beams = found.beam_indices[0][: len(rows)].tolist()
    steps = [
        step[-1][beam].mean((0, 1))
        for step, beam in zip(found.cross_attentions, beams, strict=False)
    ]
    torch.testing.assert_close(looks, torch.stack(steps), atol=6e-4, rtol=0)
    assert looks.max() > 0.3 and ("mean of the 2 heads" in page) == (name == "seq2seq-layers")
    ended = rows[-1] == "(end)"
    stopped = [f"The model came to no end; it was stopped after {length} tokens."]
    assert readers[name].warnings == ([] if ended else stopped)

    words, read, merged = seen(readers[name].translate(text)[1])
    assert read == [*re.findall(r"\w+|[^\w\s]+", text), "(end)"]
    assert words == re.findall(r"\w+|[^\w\s]+", written) + ["(end)"] * ended
    sums = torch.stack([looks[:, x].sum(1) for x in groups(read, columns)], 1)
    means = torch.stack([sums[x].mean(0) for x in groups(words, rows)])
    torch.testing.assert_close(merged, means, atol=5e-3, rtol=0)
    assert readers[name].translate(text, beams=1)[2][0][0]


def test_a_model_without_attention(readers, served, no_traceback):
    text, page, kept = readers["seq2seq-none"].translate("A dog runs.", beams=8)
    assert "There is nothing to see: this model has no attention" in page and "<table" not in page
    assert text == kept[0][0] and len(kept) == 8
    assert sorted(kept, key=lambda pair: -pair[1]) == kept


def test_labels_and_examples_are_those_of_the_data(served):
    labels = {
        "seq2seq": ("German", "English", "Ein Hund rennt"),
        "seq2seq-layers": ("Read", "Written", None),
        "seq2seq-none": ("English", "Pig Latin", "The quick brown fox."),
    }
    for name, (read, written, example) in labels.items():
        components = httpx.get(f"{served[name]['url']}config").json()["components"]
        boxes = [x["props"] for x in components if x["type"] == "textbox" and x["props"]["visible"]]
        assert [box["label"] for box in boxes] == [read, written]
        assert (boxes[0].get("value") or "").startswith(example or "")
        assert any(x["type"] == "dataset" for x in components) == bool(example)


def test_texts_of_all_sorts_are_translated(readers, no_traceback):
    bpe, characters = readers["seq2seq"], readers["seq2seq-layers"]
    end = "<|endoftext|>"
    plain = bpe.translate("Ein Hund", beams=1)
    assert bpe.translate(f"Ein{end} Hund", beams=1) == plain
    assert bpe.warnings[0].endswith("never seen them: &lt;|endoftext|&gt;")
    # Bytes know all characters, also several to one; a word of many tokens is shown by token.
    _, columns, _ = seen(bpe.translate("\N{DOG FACE}", beams=1)[1])
    assert columns == ["\N{DOG FACE}", "…", "…", "…", "(end)"]
    _, columns, _ = seen(bpe.translate("\0 <b>", beams=1)[1])
    assert columns[1:] == ["<", "b", ">", "(end)"]
    _, columns, _ = seen(bpe.translate("Donaudampfschiff", beams=1)[1])
    assert "".join(columns) == "Donaudampfschiff(end)"
    _, columns, _ = seen(characters.translate("\N{DOG FACE}Ein H\xf6nd", beams=1)[1])
    assert columns == ["Ein", "Hnd", "(end)"]
    assert characters.warnings[0].endswith("never seen them: \xf6 \N{DOG FACE}")

    _, columns, _ = seen(bpe.translate("? " * 150, beams=1, by_token=True)[1])
    assert len(columns) == 61 and "only the first 60 of the text's" in bpe.warnings[0]
    _, columns, _ = seen(characters.translate("Ein Hund " * 5, beams=1, by_token=True)[1])
    assert len(columns) == 32 and "only the first 31 of the text's 44" in characters.warnings[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("",), "There is nothing to read"),
        ((None,), "There is nothing to read"),
        ((" \n\t",), "There is nothing to read"),
        (("\N{DOG FACE}",), "There is nothing to read"),
        (("a" * 301,), "Read has 301 characters; it may have at most 300"),
        (("a", 0), "Beams is 0; it must be a whole number from 1 to 8"),
        (("a", 9), "Beams is 9"),
        (("a", 1.5), "Beams is 1.5"),
        (("a", None), "Beams is empty"),
    ],
)
def test_texts_that_cannot_be_translated(readers, asked, message, no_traceback):
    with pytest.raises(gradio_client.exceptions.AppError, match=f"^{message}"):
        readers["seq2seq-layers"].translate(*asked)


def test_halves_of_characters_are_none(readers, no_traceback):
    answer = sent(readers["seq2seq-layers"], "translate", r'["\ud83d", 1, false]')
    assert "never seen them: ?" in answer and "There is nothing to read" in answer


# ----------------------------------------------------------------------------------- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update"""


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens pages that may say nothing on the console and ask no other host."""
    complaints, hosts, pages = [], set(), []

    def open_page(url, width, height):
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.set_default_timeout(60_000)
        page.on("console", lambda x: complaints.append(x.text) if x.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
        page.goto(url)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not complaints
    assert hosts <= {"127.0.0.1", None}  # None: data: and blob:


def test_a_visit_to_gpt(served, visit, tmp_path):
    page = visit(served["gpt"]["url"], 1280, 900)
    prompt, text = page.locator("textarea").first, page.locator("textarea").nth(1)
    button = {
        name: page.get_by_role("button", name=name, exact=True)
        for name in ("Write", "Another", "Stop", "To be, or not")
    }

    prompt.fill("JULIET:\n")
    button["To be, or not"].click()
    page.wait_for_function("document.querySelector('textarea').value.startsWith('HAMLET')")
    prompt.fill("JULIET:\n")
    page.get_by_label("number input for Length").fill("1000")
    button["Write"].click()
    texts = "document.querySelectorAll('textarea')[1].value"
    page.wait_for_function(f"{texts}.startsWith('JULIET:')")
    button["Stop"].click()
    page.wait_for_timeout(300)
    stopped = text.input_value()
    page.wait_for_timeout(300)
    assert text.input_value() == stopped
    assert len(stopped) < 1000

    page.get_by_label("number input for Length").fill("100")
    button["Another"].click()
    page.wait_for_function(f"{texts}.length == 108 && {texts} != {json.dumps(stopped)}")
    assert page.get_by_label("Seed").input_value() == "2"
    page.get_by_label("Seed").fill("-3")
    button["Write"].click()
    page.get_by_text("Seed is -3; it must be").wait_for()
    uncovered = """text => {
        const box = text.getBoundingClientRect();
        return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) == text;
    }"""
    assert text.evaluate(uncovered), "an error hides what was written before"
    page.screenshot(path=tmp_path / "wide.png", full_page=True)
    page = visit(served["gpt"]["url"], 390, 844)
    page.get_by_role("button", name="Write", exact=True).click()
    page.wait_for_function(f"{texts}.length > 400")
    page.wait_for_timeout(300)
    grown = "document.querySelectorAll('textarea')[1]"
    assert page.evaluate(f"{grown}.scrollHeight <= {grown}.clientHeight + 2"), "text is cut off"
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_visit_to_rnn(served, visit, tmp_path):
    for name, width, height in (("wide", 1280, 900), ("phone", 390, 844)):
        page = visit(served["rnn"]["url"], width, height)
        page.get_by_label("number input for Length").fill("50")
        page.get_by_role("button", name="Write", exact=True).click()
        page.wait_for_function("document.querySelectorAll('textarea')[1].value.length == 57")
        page.get_by_role("button", name="Take what was written").click()
        shown = page.locator(".painted")
        shown.wait_for()
        legend = page.locator(".legend").inner_text()
        assert legend.split() == ["The", "unit", "says", "-1", "-0.5", "0", "0.5", "1"]
        assert shown.inner_text().startswith("ROMEO:")
        before = shown.inner_html()
        page.get_by_role("button", name="Next unit").click()
        page.wait_for_function(
            "old => document.querySelector('.painted').innerHTML != old", arg=before
        )
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_visit_to_bert(served, visit, tmp_path):
    for name, width, height in (("wide", 1280, 900), ("phone", 390, 844)):
        page = visit(served["bert"]["url"], width, height)

        def press(name, page=page):
            page.get_by_role("button", name=name, exact=True).click()

        bars = ".guesses:visible .confidence-set"
        assert not page.locator(".guesses:visible").count()
        press("Two at once")
        page.wait_for_function("document.querySelector('textarea').value.startsWith('She was')")
        press("Fill in")
        page.locator(bars).nth(9).wait_for()
        press("Hide a word")
        page.locator(bars).nth(14).wait_for()
        assert page.locator(".guesses:visible").count() == 3
        press("Unkind")
        page.wait_for_function("document.querySelectorAll('textarea')[1].value.startsWith('The p')")
        press("Judge")
        page.locator(".legend").wait_for()
        page.locator(bars).nth(16).wait_for()
        assert page.locator(".painted").nth(1).inner_text().startswith("The plot is a mess")
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        page.locator("textarea").first.fill("no blank here")
        press("Fill in")
        page.get_by_text("Write [MASK] where a word is missing").wait_for()


def test_a_visit_to_seq2seq(served, visit, tmp_path):
    for name, width, height in (("wide", 1280, 900), ("phone", 390, 844)):
        page = visit(f"{served['seq2seq']['url']}?__theme=dark", width, height)
        text = page.locator("textarea").first
        page.get_by_role("button", name="Ein Hund rennt").click()
        page.locator(".map").wait_for()
        columns = page.locator(".map thead th")
        assert columns.all_inner_texts()[:3] == ["Ein", "Hund", "rennt"]
        text.fill("Ein alter Mann liest ein Buch " * 3)
        page.get_by_role("button", name="Translate", exact=True).click()
        page.wait_for_function("document.querySelectorAll('.map thead th').length == 19")
        page.get_by_label("Show tokens").check()
        page.wait_for_function("document.querySelectorAll('.map thead th').length > 19")
        inside = (
            "document.querySelector('.map').scrollWidth <= document.documentElement.scrollWidth"
        )
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(inside) == (name == "wide")  # else it scrolls in its box
        text.fill(" ")
        page.get_by_role("button", name="Translate", exact=True).click()
        page.get_by_text("There is nothing to read: write something first").wait_for()


def test_a_visit_to_a_picture_classifier(served, visit, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:999])
    for name, width, height in (("wide", 1280, 900), ("phone", 390, 844)):
        page = visit(served["resnet"]["url"], width, height)
        page.get_by_role("button", name="Thumbnail 4 of 10").click()
        legend, maps = page.locator(".legend"), page.get_by_alt_text("Where the evidence")
        legend.wait_for()
        before = maps.get_attribute("src")
        page.get_by_role("radio").nth(1).click()
        changed = "old => document.querySelectorAll('.seen img')[1].src != old"
        page.wait_for_function(changed, arg=before)
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

        page.get_by_label("Remove Image").click()
        legend.wait_for(state="detached")
        upload = page.locator("input[type=file]").first
        upload.set_input_files(tmp_path / "photo.png")
        legend.wait_for()
        page.get_by_label("Remove Image").click()
        legend.wait_for(state="detached")
        upload.set_input_files(tmp_path / "cut.png")
        page.get_by_text("This PNG file is damaged").wait_for()
        assert page.get_by_text("This PNG file is damaged").count() == 1
        page.get_by_text("Drop a picture here").wait_for()
        assert not maps.count()
