"""Puts a finished run on the Hub."""

import contextlib
import time
from pathlib import Path

import httpx2  # the HTTP client of huggingface_hub, whose errors come through it
from huggingface_hub import HfApi, RepoUrl, get_session
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainingArguments

from groundup.data_scripts.sources import HUB_ERRORS

# What a run keeps for itself: checkpoints, what it resumes by, temporary files.
PRIVATE = ["checkpoint-*/**", "settings.json", ".*"]
# Seconds that the Hub may be silent in one try of a call (the client makes up to six of some). An
# upload may take longer, as long as it gets on.
PATIENCE = 60.0
PAUSE = 5.0  # seconds before the second try


def publish(args: TrainingArguments) -> None:
    """Puts a finished run on the Hub, in one commit: all of it, or nothing.

    Raises:
        ValueError: there is no finished run, or the Hub did not take it; says what to do.
    """
    folder = Path(args.output_dir)
    if not (folder / "metrics.json").exists():
        raise ValueError(f"{folder} holds no finished run to publish")
    try:
        try:
            repo = _upload(args, folder)
        except HUB_ERRORS as error:
            if not _may_pass(error):
                raise
            time.sleep(PAUSE)
            repo = _upload(args, folder)
    except (*HUB_ERRORS, RuntimeError) as error:
        raise ValueError(
            f"could not publish to {args.hub_model_id}: {_reason(error)}; the run is whole in "
            f"{folder}, and the same command tries again"
        ) from error
    print(f"published: {repo}")


def _upload(args: TrainingArguments, folder: Path) -> RepoUrl:
    api = HfApi(token=args.hub_token)
    with _bounded_waits():
        private = bool(args.hub_private_repo)
        repo = api.create_repo(args.hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message="Publish the run",
            ignore_patterns=PRIVATE,
        )
    return repo


@contextlib.contextmanager
def _bounded_waits():
    """The client waits for ever where the Hub takes a call and does not answer; in here, not."""
    session = get_session()
    before, session.timeout = session.timeout, PATIENCE
    try:
        yield
    finally:
        session.timeout = before


def _may_pass(error: Exception) -> bool:
    """The Hub's own trouble or a broken connection; some calls the client makes only once."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError)


def _reason(error: Exception) -> str:
    """What went wrong, in few words."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        # Where a file does not arrive, the client says which, and only the cause says why.
        return f"{str(error).rstrip('.')} ({_reason(error.__cause__)})"
    if isinstance(error, httpx2.TimeoutException):
        return f"the Hub did not answer within {PATIENCE:g} seconds"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, error.server_message
        reason = f"the Hub answered {status} {error.response.reason_phrase}"
        if said:
            reason += f" ({said})"
        if status in (401, 403):
            reason += "; log in with a token that may write there (`hf auth login`)"
        return reason
    said = " ".join(str(error).split())[:200]
    return f"no connection to the Hub ({said})" if isinstance(error, httpx2.HTTPError) else said
