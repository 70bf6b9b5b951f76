"""The stand-in Hub, asked by the real client: what the other tests rely on."""

import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx2
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError


@pytest.fixture
def api():
    return HfApi()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    """The client waits a second and more before it tries again; not here."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def folder(tmp_path):
    """Small and large files, text and not, one of them in a folder."""
    folder = tmp_path / "upload"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nHello\n")
    (folder / "deep" / "er.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    return folder


def contents(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_what_is_uploaded_comes_down(hub, api, folder, tmp_path, kind):
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    url = api.create_repo(f"round-{kind}", repo_type=kind, **sdk)
    assert url.repo_id == f"user/round-{kind}" and url.repo_type == kind
    api.create_repo(url.repo_id, repo_type=kind, exist_ok=True, **sdk)
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo(url.repo_id, repo_type=kind, **sdk)

    commit = api.upload_folder(repo_id=url.repo_id, folder_path=folder, repo_type=kind)
    assert hub.files(url.repo_id, kind) == contents(folder)
    down = snapshot_download(url.repo_id, repo_type=kind, local_dir=tmp_path / "down")
    assert contents(tmp_path / "down") == contents(folder), down
    assert api.repo_info(url.repo_id, repo_type=kind).sha == commit.oid

    commit = api.upload_folder(
        repo_id=url.repo_id, folder_path=folder, repo_type=kind, delete_patterns="*"
    )
    assert hub.files(url.repo_id, kind) == contents(folder)
    api.delete_file("README.md", url.repo_id, repo_type=kind)
    api.delete_folder("deep", url.repo_id, repo_type=kind)
    assert set(hub.files(url.repo_id, kind)) == {"model.safetensors"}
    # an older commit stays as it was
    old = snapshot_download(url.repo_id, repo_type=kind, revision=commit.oid)
    assert set(api.list_repo_files(url.repo_id, repo_type=kind)) == {"model.safetensors"}
    assert (tmp_path / "down" / "README.md").read_text() == Path(old, "README.md").read_text()
    api.delete_repo(url.repo_id, repo_type=kind)
    assert hub.files(url.repo_id, kind) == {}


def test_what_is_not_there(hub, api, folder):
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("user/nowhere")
    api.create_repo("little")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("user/little", "nothing.json")
    with pytest.raises(RepositoryNotFoundError):
        api.upload_folder(repo_id="user/nowhere", folder_path=folder)


def test_whoami_and_tokens(api, folder):
    assert api.whoami()["name"] == "user"
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token=False).create_repo("not-mine")


def test_range_and_head(hub, api, folder):
    api.create_repo("ranges")
    api.upload_folder(repo_id="user/ranges", folder_path=folder)
    url = f"{hub.url}/user/ranges/resolve/main/model.safetensors"
    content = (folder / "model.safetensors").read_bytes()

    def ask(headers, method="GET"):
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method))

    part = ask({"Range": "bytes=100-199"})
    assert part.status == 206 and part.read() == content[100:200]
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(content)}"
    assert ask({"Range": "bytes=255990-"}).read() == content[255990:]
    head = ask({}, "HEAD")
    assert head.read() == b"" and head.headers["Content-Length"] == str(len(content))
    assert head.headers["ETag"] and head.headers["X-Repo-Commit"]
    with pytest.raises(urllib.error.HTTPError, match="416"):
        ask({"Range": "bytes=256000-"})


def new_weights(folder, content: bytes):
    """The Hub asks only for LFS files that it does not have yet."""
    (folder / "model.safetensors").write_bytes(content * 10_000)


def test_a_broken_upload_is_tried_again(hub, api, folder):
    new_weights(folder, b"cut once")
    api.create_repo("cut")
    hub.cut_next_upload()
    hub.requests.clear()
    api.upload_folder(repo_id="user/cut", folder_path=folder)
    assert [method for method, _ in hub.requests].count("PUT") == 2
    assert hub.files("user/cut") == contents(folder)


def test_nothing_is_visible_before_the_commit(hub, api, folder):
    new_weights(folder, b"cut for good")
    api.create_repo("atomic")
    hub.cut_next_upload(times=100)
    with pytest.raises(RuntimeError) as error:
        api.upload_folder(repo_id="user/atomic", folder_path=folder)
    assert isinstance(error.value.__cause__, httpx2.TransportError)
    assert hub.files("user/atomic") == {}
    hub.heal()
    api.upload_folder(repo_id="user/atomic", folder_path=folder)
    assert hub.files("user/atomic") == contents(folder)


def test_a_failing_hub(hub, api, folder):
    (folder / "README.md").unlink()  # its check is the one call that the client makes only once
    api.create_repo("fails")
    hub.fail_next(2, status=503)  # the client tries again
    api.upload_folder(repo_id="user/fails", folder_path=folder)
    hub.fail_next(1, status=403)  # and does not here
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_folder("deep", "user/fails")
    assert hub.files("user/fails") == contents(folder)


def test_a_commit_must_be_whole(hub, api):
    """A client that dies in the middle of the commit request leaves nothing."""
    api.create_repo("half")
    line = json.dumps({"key": "file", "value": {"path": "a.txt", "content": "YQ=="}}).encode()
    with socket.create_connection(hub.server.server_address) as client:
        client.sendall(
            b"POST /api/models/user/half/commit/main HTTP/1.1\r\nHost: hub\r\n"
            b"Authorization: Bearer x\r\nContent-Length: %d\r\n\r\n" % (len(line) * 2) + line
        )
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert hub.files("user/half") == {}


def test_a_commit_is_all_or_nothing(hub, api):
    api.create_repo("all")
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("nothing.txt")]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit("user/all", operations, commit_message="half of it is wrong")
    assert hub.files("user/all") == {}
    operations = [CommitOperationAdd("new.txt", b"new")]
    commit = api.create_commit("user/all", operations, commit_message="right")
    assert hub.files("user/all") == {"new.txt": b"new"}
    api.upload_file(path_or_fileobj=b"x", path_in_repo="y", repo_id="user/all")
    with pytest.raises(HfHubHTTPError, match="412"):
        operations = [CommitOperationAdd("late.txt", b"late")]
        api.create_commit("user/all", operations, commit_message="l", parent_commit=commit.oid)


def test_datasets_go_up_and_come_down(hub):
    rows = Dataset.from_dict({"text": ["to be", "or not"], "label": [1, 0]})
    rows.push_to_hub("user/rows")
    assert any(path.endswith(".parquet") for path in hub.files("user/rows", "dataset"))
    again = load_dataset("user/rows", split="train")
    assert again.to_dict() == rows.to_dict()


def test_a_slow_hub(hub, api):
    hub.delay(0.2, on="whoami")
    before = time.monotonic()
    api.whoami()
    assert time.monotonic() - before >= 0.2


def test_faults_at_some_calls_only(hub, api, folder, tmp_path):
    api.create_repo("some")
    hub.fail_next(1, status=403, on="^GET .*README")
    api.upload_folder(repo_id="user/some", folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.hf_hub_download("user/some", "README.md")
    hub.cut_next_download(3, on="safetensors")
    hub.requests.clear()
    down = Path(api.hf_hub_download("user/some", "model.safetensors"))
    assert [method for method, _ in hub.requests].count("GET") == 4
    assert down.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_no_other_hub_is_asked(hub):
    assert hub.url == constants.ENDPOINT
    assert not constants.HF_HUB_OFFLINE


# ------------------------------------------------------------------------------ fresh processes


def test_a_fresh_process_knows_nothing_of_us(fresh_python, tmp_path):
    """No toolkit, another home, another folder: what it takes to put remote code to the test."""
    code = """
import importlib.util, json, os, sys
try:
    import groundup.models.gpt
    found = True
except ImportError:
    found = False
print("something before")
facts = {"found": found, "home": os.environ["HF_HOME"], "cwd": os.getcwd(), "args": sys.argv[1:]}
facts["models"] = importlib.util.find_spec("models") is not None
print(json.dumps(facts | {"set": os.environ["SET"]}))
"""
    facts = fresh_python(code, "a", "b c", cwd=tmp_path, env={"SET": "here"}).json
    assert facts["args"] == ["a", "b c"] and facts["set"] == "here"
    assert not facts["found"] and not facts["models"]
    assert facts["cwd"] == str(tmp_path) and facts["home"] != constants.HF_HOME
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        fresh_python("1 / 0")
    failed = fresh_python("print('so far'); raise SystemExit(3)", check=False)
    assert failed.returncode == 3 and failed.stdout == "so far\n"
