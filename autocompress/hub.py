"""Exported folders on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from autocompress.errors import UserError


def check_token() -> None:
    """Raises:
    UserError: this machine has no token of the hub.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError("--push-to-hub: no token of the hub; run hf auth login, or set HF_TOKEN")


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a model repository, which is made where there is none.

    Args:
        repo: its name, or its owner and name.

    Returns:
        Its address.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import create_repo, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        url = create_repo(repo, exist_ok=True)
        upload_folder(repo_id=url.repo_id, folder_path=folder)
    except (HFValidationError, *HfHubHTTPError.__bases__) as error:  # a lost connection, too
        reason = str(error).splitlines()[0]
        raise UserError(f"--push-to-hub {repo}: {reason} ({folder} is written)") from error
    return str(url)
