"""Exported folders on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    # its base is that of lost connections as well, whichever client the hub's package uses
    refusals: Any = (HFValidationError, *HfHubHTTPError.__bases__)
    try:
        url = create_repo(repo, exist_ok=True)
        upload_folder(repo_id=url.repo_id, folder_path=folder)
    except refusals as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--push-to-hub {repo}: {reason} ({folder} is written)") from error
    return str(url)
