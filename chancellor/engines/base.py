"""The contract between whoever wants text and whatever makes it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from chancellor.fallbacks import Fallback

if TYPE_CHECKING:
    from chancellor.catalog import ModelSpec

__all__ = ["Delta", "Engine", "EngineStats", "GenerationRequest", "Guide", "TokenLogprob", "ToolCallPiece"]


@dataclass(frozen=True, slots=True)
class Guide:
    """What the answer has to look like; the engine makes no token that breaks it."""

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"]
    value: Any = None
    """A JSON schema, a regular expression, a list of texts, an EBNF grammar, or a structural tag of xgrammar's."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request. Messages are in the form of OpenAI's: {"role": ..., "content": ..., "tool_calls": [...]}."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    prompt: str | tuple[int, ...] | None = None
    """A text, or token ids, to be continued as it stands, instead of messages."""
    max_tokens: int = 512
    """Most new tokens; the model's context can end the answer earlier."""
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    """How many of the likeliest tokens to choose from; 0 for all."""
    min_p: float = 0.0
    """Least probability of a token to be chosen, as a share of the likeliest one's."""
    seed: int | None = None
    presence_penalty: float = 0.0
    """Taken once off the logit of each token that the answer has already; from -2 to 2."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time that the answer has it; from -2 to 2."""
    repetition_penalty: float = 1.0
    """Divides the logit of each token that prompt or answer have, if it is positive; else it multiplies it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids with what is added to their logits."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    logprobs: int | None = None
    """How many of the likeliest tokens to report at each step, besides the chosen one."""
    stream: bool = False
    """False asks for one delta at the end, which spares all work per token."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever the model says: for benchmarks."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that the model may call: {"type": "function", "function": {"name", "description", "parameters"}}."""
    tool_choice: str = "auto"
    """ "auto" leaves it to the model, "none" forbids it, "required" is some call, and all else a function's name."""
    parallel_tool_calls: bool = False
    """Whether a forced call may be several."""
    single_tool_call: bool = False
    """Whether an answer has no more than one call, also where they are left to the model."""
    guide: Guide | None = None
    timeout_s: float | None = None
    """Seconds until the last of the answer has to be there, the start of an engine and restarts included."""
    retries: int = 0
    """How many deaths of its engine the request outlives, each time going on with a new one."""
    answered: tuple[int, ...] = ()
    """Token ids of the answer that there are already: the engine goes on after them. They count for max_tokens."""
    answered_text: str = ""
    """What of their text the caller has; an end of it may be held back, as the beginning of a stop text."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token with the natural logarithm of its probability."""

    token_id: int
    token: str
    logprob: float
    top: dict[int, float] = field(default_factory=dict)
    """Token id to log probability, of the likeliest tokens at this step."""
    top_tokens: tuple[tuple[str, float], ...] = ()
    """The same with the tokens' texts, the likeliest first."""


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A piece of a tool call. Its first has the id and the name; the arguments' JSON may come in several."""

    index: int
    """Number of the call in this answer, from 0."""
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer. The last one has a finish reason, and the figures below it."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    """What the model thought before it answered; it is not part of the text."""
    tool_calls: tuple[ToolCallPiece, ...] = ()
    finish_reason: str | None = None
    """ "stop", "length" or "tool_calls" on the last delta, else None."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of the prompt that were found in the prefix cache."""
    inference_time_s: float | None = None
    """Seconds from handing over the request to its last token."""
    time_to_first_token_s: float | None = None
    queue_time_s: float | None = None
    """Seconds that the request waited in the engine for its first turn."""
    model: str | None = None
    """Name of the model that answers: on the last delta, and on all where it is not the one that was asked."""
    engine: str | None = None
    """Kind of the engine that answered."""
    quantization: str | None = None
    """Scheme of the weights that answered."""
    fallbacks: tuple[Fallback, ...] = ()
    """What was done because things failed, on the last delta."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing now, and has done since its start. None stands for what the engine does not tell."""

    running: int
    """Requests in the current batch."""
    waiting: int | None
    kv_cache_usage: float | None
    """Share of the KV cache in use, from 0 to 1."""
    peak_running: int
    """Largest batch since the start."""
    output_tokens: int | None = None
    """Tokens generated since the start."""
    prefix_cache_queries: int | None = None
    """Prompt tokens that were looked up in the prefix cache since the start."""
    prefix_cache_hits: int | None = None
    """Those of them that were found."""
    preemptions: int | None = None
    """Requests that were put back to make room in the KV cache, since the start."""


class Engine(ABC):
    """A model that is, or can be, loaded. All methods run on the host's event loop."""

    kind: ClassVar[str]
    """Name of the engine in metrics, e.g. "vllm"."""
    spec: "ModelSpec"
    """The entry that it serves."""

    @property
    @abstractmethod
    def quantization(self) -> str | None:
        """Name of the scheme that the loaded weights have, or None."""

    @abstractmethod
    async def start(self) -> None:
        """Load the model; return when it answers.

        Raises:
            CheckpointError: its files cannot be used.
            EngineStartError: it did not become ready.
            MissingDependencyError: the engine's package is not installed.
        """

    def interrupt(self) -> None:  # noqa: B027 - most engines have nothing to interrupt
        """Make a start that is under way fail soon; called again until it has."""

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Yield the answer as it comes. Closing the iterator or cancelling its task aborts the request.

        Raises:
            PromptTooLongError: the prompt leaves no room for an answer.
            EngineDiedError: the engine's process is gone.
            GenerationError: this request failed.
        """

    @abstractmethod
    def healthy(self) -> bool:
        """Return whether a request can be expected to succeed."""

    def stalled(self) -> str | None:
        """Return why the engine, or its start, will not go on by itself, or None as long as it may."""
        return None

    def kill(self) -> None:  # noqa: B027 - most engines have no processes
        """End its processes without asking them; what they were answering ends with an EngineDiedError."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Return what the engine is doing now."""

    def peaks(self) -> tuple[int, float | None] | None:
        """Return the largest batch and the highest use of the KV cache since the last call; None if nobody counts."""
        return None

    def tokenizer(self) -> Any | None:
        """Return the model's Hugging Face tokenizer, or None where there is none at hand."""
        return None

    def process_ids(self) -> list[int]:
        """Return the ids of the processes below this one that the engine runs, or starts, in."""
        return []

    def facts(self) -> dict[str, float]:
        """Return what became known while it started, e.g. `weights_gib`, the memory that the weights take."""
        return {}

    def inner(self) -> Any:
        """Return the library's own engine object, to be used on the host's loop only, or None."""
        return None

    async def forget(self) -> None:  # noqa: B027 - most engines have nothing to forget
        """Empty the prefix cache, if there is one. No request may be running."""

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` and `wake` do anything for it."""
        return False

    async def sleep(self) -> None:
        """Give back the device's memory and keep the weights in the host's. No request may be running.

        May take as long as it likes, or for ever if the engine dies: whoever calls it has a limit. After an error, or a
        cancellation, nothing is known about the engine, which has to be killed.
        """
        raise NotImplementedError(f"Engines of kind {self.kind!r} do not sleep.")

    async def wake(self) -> None:
        """Undo `sleep`, under the same conditions. Nobody looks whether the device has the memory."""
        raise NotImplementedError(f"Engines of kind {self.kind!r} do not sleep.")

    @abstractmethod
    async def close(self) -> None:
        """Free everything; no process is left behind. Closing twice is allowed."""
