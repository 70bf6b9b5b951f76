"""The Spaces, as their visitors meet them: one process serves them all, without the toolkit.

Each runs from a copy of its folder with a tiny model, is driven by gradio_client, and makes one
journey in headless Chromium.
"""

import ast
import json
import re
import shutil
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import yaml
from huggingface_hub import HfApi

from groundup.data_scripts.tokenization import train_tokenizer
from groundup.models.gpt import GPTConfig, GPTForCausalLM

gradio_client = pytest.importorskip("gradio_client", reason="the Spaces need gradio")
httpx = pytest.importorskip("httpx", reason="gradio_client asks with httpx")

SPACES = Path(__file__).parents[1] / "spaces"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
ROWS = sorted(path.parent.name for path in SPACES.glob("*/app.py"))
TEXT = "ROMEO:\nJULIET: But soft, what light through yonder window breaks? 0123456789\n"
CONTEXT = 32

# -------------------------------------------------------------------------------- the one process

# Runs each app.py as `python app.py` does, but goes on when its server stands. What it is given:
# a list of {name, folder, model, revision, loads}; where to report, write errors, look for the end.
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
    sys.modules.pop("space", None)
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


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """What the Spaces are given to load, by `row` or `row-variant`."""
    folder = tmp_path_factory.mktemp("models")
    return {
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
def served(fresh_python, models, revision, tmp_path_factory):
    """All Spaces, running: {name: {url}}, {row-broken: {code, said}}, pid, errors."""
    folder = tmp_path_factory.mktemp("served")
    manifest = []
    for row in ROWS:
        shutil.copytree(SPACES / row, folder / "spaces" / row)
        # One folder up from where it was in the clone, so that no pretrained/ is near.
        entry = {"folder": str(folder / "spaces" / row), "revision": "", "loads": False}
        manifest.append(entry | {"name": f"{row}-no-folder", "model": str(folder / "nothing")})
        manifest.append(entry | {"name": f"{row}-no-repository", "model": "nobody/nothing"})
        for name in [name for name in models if name.split("-")[0] == row]:
            given = {"name": name, "model": str(models[name]), "loads": True}
            if name == "gpt-bpe":
                given |= {"model": "user/spaces-gpt-bpe", "revision": revision}
            manifest.append(entry | given)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report, errors, end = folder / "report.json", folder / "errors.txt", folder / "end"

    failures = []

    def serve():
        try:
            fresh_python(SERVE, folder / "manifest.json", report, errors, end)
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
    assert (SPACES / row / "space.py").read_bytes() == (SPACES / "space.py").read_bytes(), (
        "run make spaces"
    )
    standard = {"collections", "dataclasses", "html", "json", "math", "os", "pathlib", "sys"}
    standard |= {"time", "io", "functools", "itertools", "random"}
    for path in (SPACES / row).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} is no part of a package"
                names = [node.module]
            for name in names:
                assert name.partition(".")[0] in {*required, *standard, "space"}, name


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
        assert "**1.500** nats per character" in page


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
        job = self.submit(**changes)
        text = job.result(timeout=60)
        self.updates = job.outputs()
        self.warnings = []
        while not job.communicator.updates.empty():
            update = job.communicator.updates.get_nowait()
            if getattr(update, "log", None):
                self.warnings.append(update.log[0])
        return text


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


def test_numbers_that_json_does_not_know(served, gpt, no_traceback):
    """gradio_client sends none, but others may."""
    api = served["gpt"]["url"] + "gradio_api"
    endpoints = gpt.client.config["dependencies"]
    fn_index = next(found["id"] for found in endpoints if found["api_name"] == "write")
    for number in ("NaN", "1e999", "-Infinity"):
        session = {"session_hash": f"raw{number}"}
        body = json.dumps(session | {"fn_index": fn_index, "data": ["a", "HERE", 0, 1, 5, 1]})
        response = httpx.post(
            f"{api}/queue/join",
            content=body.replace('"HERE"', number),
            headers={"content-type": "application/json"},
        )
        response.raise_for_status()
        answer = httpx.get(f"{api}/queue/data", params=session, timeout=20)
        assert "Temperature is" in answer.text


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
    assert len(jobs["short"].result(timeout=60)) == 107
    assert len(jobs["long"].result(timeout=60)) == 1007
    assert order == ["long", "short"]


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
        page.set_default_timeout(15_000)
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
