"""Every error Chancellor raises on purpose. Each message ends with what to do next.

ChancellorError
├── InvalidInputError
│   ├── EmptyQuestionError
│   ├── PromptTooLongError
│   └── InvalidContextError
├── CatalogError
│   ├── CatalogFileError
│   ├── NoEligibleModelError
│   ├── UnknownModelError
│   ├── ModelRejectedError
│   └── UnknownChoiceError
├── CheckpointError
│   ├── SourceNotFoundError
│   ├── DownloadError
│   ├── UnsafeCheckpointError
│   ├── BrokenCheckpointError
│   └── QuantizationError
├── MissingDependencyError
├── BenchmarkError
│   ├── ReportError
│   └── WorkloadError
└── EngineError
    ├── EngineStartError
    │   └── OutOfMemoryError
    ├── EngineDiedError
    ├── EngineBusyError
    └── GenerationError
        ├── GenerationTimeoutError
        └── UpstreamError
"""

from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "BenchmarkError",
    "BrokenCheckpointError",
    "CatalogError",
    "CatalogFileError",
    "ChancellorError",
    "CheckpointError",
    "DownloadError",
    "EmptyQuestionError",
    "EngineBusyError",
    "EngineDiedError",
    "EngineError",
    "EngineStartError",
    "GenerationError",
    "GenerationTimeoutError",
    "InvalidContextError",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelRejectedError",
    "NoEligibleModelError",
    "OutOfMemoryError",
    "PromptTooLongError",
    "QuantizationError",
    "ReportError",
    "SourceNotFoundError",
    "UnknownChoiceError",
    "UnknownModelError",
    "UnsafeCheckpointError",
    "UpstreamError",
    "WorkloadError",
]


class ChancellorError(RuntimeError):  # LangGraph's server hides the messages of errors that are no built-in ones
    """Base of all errors of this package.

    Attributes:
        message: what happened.
        hint: what to do next; a subclass has a default.
    """

    default_hint: ClassVar[str] = "Run the command again with --help, or see the README."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint or self.default_hint
        super().__init__(message, self.hint)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint), self.__dict__


def _rebuild(cls: type[ChancellorError], message: str, hint: str) -> ChancellorError:
    return cls(message, hint=hint)


class InvalidInputError(ChancellorError):
    """What was asked cannot be answered as it stands."""

    default_hint = "Change the question or the settings of the run and try again."


class EmptyQuestionError(InvalidInputError):
    """There is no question, or it is blank."""

    default_hint = 'Pass a non-empty question, e.g. {"messages": [("user", "What is 2+2?")]}.'


class PromptTooLongError(InvalidInputError):
    """The rendered prompt leaves no room for an answer within the model's context."""

    default_hint = "Shorten the conversation, or raise max_model_len in the model's [models.engine]."


class InvalidContextError(InvalidInputError):
    """The run's context has an unknown field or a value out of range."""

    default_hint = "See chancellor.Context for the fields and their ranges."


class CatalogError(ChancellorError):
    """The catalog does not allow what was asked."""

    default_hint = "`chancellor models` lists the catalog."


class CatalogFileError(CatalogError):
    """The catalog file cannot be read as a catalog."""

    default_hint = "The README shows a complete chancellor.toml."


class NoEligibleModelError(CatalogError):
    """The catalog is empty, or every model in it was rejected."""

    default_hint = "Add a model whose Trinity score reaches the minimum; `chancellor models` shows the reasons."


class UnknownModelError(CatalogError):
    """No model of the catalog has this name."""


class ModelRejectedError(CatalogError):
    """The model is in the catalog, but its Trinity score is below the minimum."""


class UnknownChoiceError(CatalogError):
    """A scheme, policy or analyzer that does not exist was named."""

    @classmethod
    def of(cls, kind: str, name: object, choices: Iterable[str]) -> "UnknownChoiceError":
        """Say that `name` is no `kind`, and list the choices."""
        return cls(f"There is no {kind} {name!r}.", hint=f"Choose one of: {', '.join(choices)}.")


class CheckpointError(ChancellorError):
    """A model's files cannot be used."""

    default_hint = "Check the entry's source; `chancellor models` shows where it points."


class SourceNotFoundError(CheckpointError):
    """The source names nothing that exists here."""


class DownloadError(CheckpointError):
    """The hub could not be reached, or refused."""

    default_hint = "Connect to the network, or set the entry's source to a local folder that holds the checkpoint."


class UnsafeCheckpointError(CheckpointError):
    """The checkpoint would run code of its own when loaded."""


class BrokenCheckpointError(CheckpointError):
    """A file of the checkpoint is missing, cut short, or not what it says."""

    default_hint = "Fetch the checkpoint again; for a quantised one, delete its folder and let it be made anew."


class QuantizationError(CheckpointError):
    """Writing a quantised checkpoint failed. Nothing half-written is left behind."""


class MissingDependencyError(ChancellorError):
    """An optional package is not installed."""

    @classmethod
    def of(cls, package: str | None, extra: str | None = None) -> "MissingDependencyError":
        """Say that a package is missing, and name the extra that brings it; by default one of the engines'."""
        install = f"'chancellor[{extra}]'" if extra else "'chancellor[cpu]' (with CUDA: 'chancellor[vllm]')"
        return cls(f"The package {package!r} is not installed.", hint=f"Install it with: pip install {install}")


class BenchmarkError(ChancellorError):
    """A benchmark cannot be run as asked."""

    default_hint = "`chancellor bench --help` lists the options."


class ReportError(BenchmarkError):
    """A benchmark's file cannot be written or read."""

    default_hint = "Pass a file that `chancellor bench --json FILE` has written."


class WorkloadError(BenchmarkError):
    """The requests to measure with cannot be made."""


class EngineError(ChancellorError):
    """An engine could not do its work. The message names its log file."""

    default_hint = "Its log says why."


class EngineStartError(EngineError):
    """The engine did not become ready."""


class OutOfMemoryError(EngineStartError):
    """The engine needs more memory than its devices have left within the budget."""

    default_hint = (
        "Lower max_model_len or kv_cache_gib under [models.engine], take a scheme that makes the model smaller, or "
        "raise CHANCELLOR_MEMORY_SHARE."
    )


class EngineDiedError(EngineError):
    """The engine's process ended while it was in use; the next request starts a new one.

    Attributes:
        partial: the text that had reached the caller of a stream.
    """

    default_hint = "Ask again: a new engine starts with the next request."
    partial: str = ""


class EngineBusyError(EngineError):
    """More requests wait for the model than may.

    Attributes:
        retry_after_s: seconds after which there should be room.
    """

    default_hint = "Ask again later, or raise max_queue under [models.engine]."
    retry_after_s: float = 1.0


class GenerationError(EngineError):
    """One request failed; the engine goes on."""


class GenerationTimeoutError(GenerationError):
    """The answer took longer than it may; it was aborted."""

    default_hint = "Allow more time (timeout), or ask for less (max_tokens)."


class UpstreamError(GenerationError):
    """The server of an entry failed, does not take the entry's key, or answers something else than OpenAI's protocol.

    The message has neither its address nor its words: callers of the endpoint get to see it. The hint has both.
    """

    default_hint = "See the log of that server, and base_url and api_key_env under [models.engine]."
