"""Puts a finished run on the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainingArguments

from groundup.data_scripts.sources import HUB_ERRORS

# What a run keeps for itself: checkpoints, what it resumes by, temporary files.
PRIVATE = ["checkpoint-*/**", "settings.json", ".*"]


def publish(args: TrainingArguments) -> None:
    """Puts a finished run on the Hub, in one commit: all of it, or nothing.

    Raises:
        ValueError: there is no finished run, or the Hub did not take it; says what to do.
    """
    folder = Path(args.output_dir)
    if not (folder / "metrics.json").exists():
        raise ValueError(f"{folder} holds no finished run to publish")
    api = HfApi(token=args.hub_token)
    try:
        private = bool(args.hub_private_repo)
        repo = api.create_repo(args.hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message="Publish the run",
            ignore_patterns=PRIVATE,
        )
    except (*HUB_ERRORS, RuntimeError) as error:  # the client's own, where a file does not arrive
        raise ValueError(
            f"the Hub did not take {args.hub_model_id} ({' '.join(str(error).split())[:200]}); "
            f"the run in {folder} is complete: the same command again publishes it"
        ) from error
    print(f"published: {repo}")
