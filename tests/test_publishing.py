"""A trained model goes to the (stand-in) Hub and is used from there by those who know no Groundup.

Then the same with a Hub that fails, is silent, or cuts: a clear line, a retry that completes, and
never a part that claims to be the whole. The vehicle is the published Tiny GPT.
"""

import copy
import math
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from groundup.train import gpt, publishing

TRAINED = Path(gpt.__file__).parent.parent / "pretrained" / "gpt"
PROMPT, NEW_TOKENS = "ROMEO:\n", 20
# The calls of a publication, in their order.
CALLS = {
    "create_repo": "^POST /api/repos/create",
    "validate_yaml": "^POST /api/validate-yaml",
    "preupload": "^POST .*/preupload/",
    "lfs_batch": "^POST .*/lfs/objects/batch",
    "put": "^PUT /lfs/",
    "commit": "^POST .*/commit/",
}


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def run(tmp_path, hub, monkeypatch):
    """A finished run, the trained model, of which the Hub has no part yet; nobody waits."""
    hub.blobs.clear()  # what was uploaded once is not asked for again
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Path(shutil.copytree(TRAINED, tmp_path / "run"))


def publish(run: Path, repo_id: str) -> int:
    """The command that publishes a finished run; gives its exit status."""
    text = run.parent / "text.txt"  # data, so that it needs no Shakespeare
    text.write_text("O king, O queen, O fool\n" * 100)
    flags = ["--text", text, "--output_dir", run, "--push_to_hub", "--hub_model_id", repo_id]
    with pytest.raises(SystemExit) as ended:
        gpt.main([str(flag) for flag in flags])
    return ended.value.code


def published(hub, repo_id: str) -> dict[str, bytes]:
    return {name: data for name, data in hub.files(repo_id).items() if name != ".gitattributes"}


def assert_refused(hub, run: Path, repo_id: str, capsys, *words: str) -> None:
    """One clear line, nothing lost here, nothing half there."""
    before = content(run)
    capsys.readouterr()
    assert publish(run, repo_id) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: could not publish to {repo_id}: "), line
    assert line.endswith(f"; the run is whole in {run}, and the same command tries again")
    for word in words:
        assert word in line
    assert content(run) == before
    assert published(hub, repo_id) == {}


def assert_completes(hub, run: Path, repo_id: str) -> None:
    """The same command, when the Hub is well again."""
    hub.heal()
    assert publish(run, repo_id) == 0
    assert published(hub, repo_id) == content(run)


# -------------------------------------------------------------------------------------- uploading


def test_all_of_a_run_is_published(run, hub, capsys):
    assert publish(run, "user/all-of-it") == 0
    assert f"published: {hub.url}/user/all-of-it" in capsys.readouterr().out
    assert published(hub, "user/all-of-it") == content(run)


@pytest.mark.parametrize("call", CALLS)
def test_one_answer_of_500_is_got_over(run, hub, call):
    hub.fail_next(1, on=CALLS[call])
    assert publish(run, f"user/once-{call}") == 0
    assert published(hub, f"user/once-{call}") == content(run)


@pytest.mark.parametrize("call", CALLS)
def test_a_hub_that_always_answers_500(run, hub, capsys, call):
    hub.fail_next(math.inf, on=CALLS[call])
    words = ["the Hub answered 500 Internal Server Error"]
    words += ["Error while uploading"] if call == "put" else []
    assert_refused(hub, run, f"user/always-{call}", capsys, *words)
    assert_completes(hub, run, f"user/always-{call}")


@pytest.mark.parametrize("call", CALLS)
def test_an_upload_that_is_cut(run, hub, capsys, call):
    hub.cut_next_upload(math.inf, on=CALLS[call])
    assert_refused(hub, run, f"user/cut-{call}", capsys, "no connection to the Hub")
    assert_completes(hub, run, f"user/cut-{call}")


@pytest.mark.parametrize("call", ["create_repo", "put", "commit"])
def test_a_silent_hub_is_not_waited_for_without_end(run, hub, capsys, monkeypatch, call):
    hub.delay(3, on=CALLS[call])
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "PATIENCE", 0.2)
        words = ["the Hub did not answer within 0.2 seconds"]
        assert_refused(hub, run, f"user/silent-{call}", capsys, *words)
    assert_completes(hub, run, f"user/silent-{call}")


def test_a_token_that_may_not_write_is_no_passing_trouble(run, hub, capsys):
    hub.fail_next(1, status=403, on=CALLS["commit"])
    words = ["the Hub answered 403 Forbidden", "hf auth login"]
    assert_refused(hub, run, "user/forbidden", capsys, *words)
    assert_completes(hub, run, "user/forbidden")


# ------------------------------------------------------------------------------------ downloading

# What somebody does with a model, where there is no Groundup: tried until it succeeds.
USE = """
import json, sys, time

import transformers
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

time.sleep = lambda seconds: None
found = {}
prompt, new_tokens, *repositories = sys.argv[1:]
for repo_id in repositories:
    errors, text = [], None
    while text is None and len(errors) < 8:
        try:
            model = AutoModelForCausalLM.from_pretrained(repo_id, trust_remote_code=True)
            tokenizer = AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True)
            write = pipeline("text-generation", model=model, tokenizer=tokenizer)
            answer = write(prompt, max_new_tokens=int(new_tokens), do_sample=False)
            text = answer[0]["generated_text"]
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    found[repo_id] = {"errors": errors, "text": text, "module": type(model).__module__}
by_name = pipeline("text-generation", repositories[0], trust_remote_code=True)
found["by name"] = by_name(prompt, max_new_tokens=int(new_tokens), do_sample=False)
print(json.dumps(found))
"""
NEEDED = ["config.json", "gpt.py", "transformer.py", "model.safetensors", "tokenizer.json"]


@pytest.fixture(scope="module")
def elsewhere(fresh_python, tmp_path_factory):
    """What one fresh process makes of the model on a good Hub, and on bad ones."""
    from conftest import _HUB as hub

    hub.heal()
    run = Path(shutil.copytree(TRAINED, tmp_path_factory.mktemp("published") / "run"))
    assert publish(run, "user/tiny-gpt") == 0
    AutoModelForCausalLM.from_pretrained(TRAINED).push_to_hub("user/pushed")
    AutoTokenizer.from_pretrained(TRAINED).push_to_hub("user/pushed")
    repositories = ["user/tiny-gpt", "user/pushed"]
    for name in NEEDED:
        for fault in ("failing", "cut"):
            repo_id = f"user/{fault}-{name}"
            hub.repos["model", repo_id] = copy.copy(hub.repos["model", "user/tiny-gpt"])
            repositories.append(repo_id)
        hub.fail_next(10, on=f"user/failing-{name}/resolve/.*/{name}")
        hub.cut_next_download(10, on=f"user/cut-{name}/resolve/.*/{name}")
    return fresh_python(USE, PROMPT, NEW_TOKENS, *repositories).json


@pytest.fixture(scope="module")
def expected():
    """What the trained model writes here."""
    tokenizer = AutoTokenizer.from_pretrained(TRAINED)
    ids = tokenizer(PROMPT, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(TRAINED)
    text = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    return tokenizer.decode(text, skip_special_tokens=True)


@pytest.mark.parametrize("repo_id", ["user/tiny-gpt", "user/pushed"])
def test_the_trained_model_is_used_from_the_hub(elsewhere, expected, repo_id):
    assert not elsewhere[repo_id]["errors"]
    assert elsewhere[repo_id]["text"] == expected
    assert elsewhere[repo_id]["module"].startswith("transformers_modules.")


def test_a_pipeline_is_made_of_its_name(elsewhere, expected):
    assert elsewhere["by name"] == [{"generated_text": expected}]


def test_card_and_figures_are_on_the_hub(elsewhere, hub):
    files = hub.files("user/tiny-gpt")
    card = ModelCard.load("user/tiny-gpt")
    assert card.data.pipeline_tag == "text-generation" and card.data.eval_results
    assert "figures/loss.png" in card.text and files["figures/loss.png"].startswith(b"\x89PNG")
    for repo_id in ("user/tiny-gpt", "user/pushed"):
        suffixes = {Path(name).suffix for name in hub.files(repo_id)}
        assert suffixes <= {".safetensors", ".json", ".py", ".md", ".png", ""}, suffixes


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("fault", ["failing", "cut"])
def test_a_part_that_came_down_is_not_taken_for_the_whole(elsewhere, expected, fault, name):
    """Each try is an error or the whole model; and a later one succeeds."""
    found = elsewhere[f"user/{fault}-{name}"]
    assert 1 <= len(found["errors"]) < 8
    assert found["text"] == expected
