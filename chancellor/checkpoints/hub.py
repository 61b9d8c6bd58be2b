"""Checkpoints from the Hugging Face hub, through huggingface_hub and its cache."""

import io
from pathlib import Path
from typing import Any

from chancellor import progress
from chancellor.errors import ChancellorError, DownloadError, MissingDependencyError, SourceNotFoundError

__all__ = ["cached", "download"]

_COMPANIONS = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
_FILES = [*_COMPANIONS, "*.safetensors", "*.gguf"]
_PICKLES = ["*.bin", "*.pt", "*.pth"]


def cached(repo: str, revision: str | None) -> Path | None:
    """Return the snapshot's folder if it is in the hub's cache, else None. Files may be missing in it."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES, local_files_only=True))
    except LocalEntryNotFoundError as error:
        return _incomplete(error)
    except HFValidationError:
        return None


def download(repo: str, revision: str | None, *, allow_pickle: bool = False) -> Path:
    """Download the snapshot where it is not cached, and return its folder.

    Raises:
        SourceNotFoundError: the hub has no such repository or revision.
        DownloadError: the hub could not be reached, or the repository needs a login.
    """
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise MissingDependencyError.of("huggingface-hub") from error

    at = f"{repo!r} at revision {revision or 'main'!r}"
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES, local_files_only=True))
        found = HfApi().model_info(repo, revision=revision or "main")
        names = [file.rfilename for file in found.siblings or ()]
        patterns = [*_COMPANIONS, *_weights(repo, names, allow_pickle=allow_pickle)]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, tqdm_class=_bar(repo)))
    except GatedRepoError as error:
        raise DownloadError(
            f"The hub wants a login for {at}.", hint="Accept the model's terms on the hub, then run: hf auth login"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise SourceNotFoundError(
            f"The hub has no {at}, nor is there a local folder of that name.",
            hint="Check the spelling of source and revision; a private repository needs: hf auth login",
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE and (there := _incomplete(error)) is not None:
            return there
        raise DownloadError(f"{at} is not on this machine, and the hub is switched off (HF_HUB_OFFLINE).") from error
    except ChancellorError:
        raise
    except Exception as error:  # its client library, and with it the classes, differ from release to release
        raise DownloadError(f"{at} is not on this machine, and the hub did not give it: {error}") from error


def _weights(repo: str, files: list[str], *, allow_pickle: bool) -> list[str]:
    """Return what to download of the weights: safetensors, else the one GGUF, else pickles where they are allowed."""
    if any(name.endswith(".safetensors") for name in files):
        return ["*.safetensors"]
    gguf = [name for name in files if name.endswith(".gguf")]
    if len(gguf) > 1:
        raise SourceNotFoundError(
            f"{repo!r} holds {len(gguf)} GGUF files: {', '.join(gguf[:8])}{', ...' if len(gguf) > 8 else ''}.",
            hint="Download the one you want (hf download REPO FILE) and set the source to its path.",
        )
    return gguf or (_PICKLES if allow_pickle else [])


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


def _incomplete(error: Exception) -> Path | None:
    """Return the folder that lacks files which match, but were never wanted, as a GGUF file beside safetensors.

    huggingface_hub 2 knows what the repository has; what is missing of the weights is found when they are read.
    """
    path = getattr(error, "snapshot_path", None)
    return None if path is None else Path(path)
