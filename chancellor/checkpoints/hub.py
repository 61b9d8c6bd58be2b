"""Checkpoints from the Hugging Face hub, through huggingface_hub and its cache."""

import io
from pathlib import Path
from typing import Any

from chancellor import progress
from chancellor.errors import DownloadError, MissingDependencyError, SourceNotFoundError

__all__ = ["cached", "download"]

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.gguf", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
_PICKLES = ["*.bin", "*.pt", "*.pth"]


def cached(repo: str, revision: str | None) -> Path | None:
    """Return the snapshot's folder if it is in the hub's cache, else None."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def download(repo: str, revision: str | None, *, allow_pickle: bool = False) -> Path:
    """Download the snapshot where it is not cached, and return its folder.

    Raises:
        SourceNotFoundError: the hub has no such repository or revision.
        DownloadError: the hub could not be reached, or the repository needs a login.
    """
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise MissingDependencyError.of("huggingface-hub", "cpu") from error

    patterns = _FILES + (_PICKLES if allow_pickle else [])
    at = f"{repo!r} at revision {revision or 'main'!r}"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, tqdm_class=_bar(repo)))
    except GatedRepoError as error:
        raise DownloadError(
            f"The hub wants a login for {at}.", hint="Accept the model's terms on the hub, then run: hf auth login"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise SourceNotFoundError(
            f"The hub has no {at}, nor is there a local folder of that name.",
            hint="Check the spelling of source and revision; a private repository needs: hf auth login",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise DownloadError(f"{at} is not on this machine, and the hub cannot be reached.") from error


def _bar(repo: str) -> type[Any]:
    """Return a tqdm class that reports to our listeners instead of drawing on the terminal."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            if self.unit == "B":
                progress.report("download", repo, "downloading", int(self.n), int(self.total or 0) or None)

    return Bar
