"""The form that answers have on the wire.

Types are OpenAI's. Pieces of a stream that are only text are put together by hand: there are thousands a second.
"""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

from openai.types import CompletionUsage
from openai.types.completion_usage import PromptTokensDetails
from pydantic import BaseModel

from chancellor.engines import Delta, GenerationRequest
from chancellor.server.options import ServeOptions

__all__ = ["DONE", "Answers", "Form", "event", "finite", "usage_of"]

_LOWEST: Final = -9999.0
DONE: Final = b"data: [DONE]\n\n"
Answers = Sequence[Sequence[Delta]]
"""For each choice, its deltas."""


def event(data: BaseModel | dict[str, Any], more: dict[str, Any] | None = None) -> bytes:
    """Return an event of a stream.

    Args:
        data: what OpenAI's protocol has.
        more: fields beside them.
    """
    fields = data if isinstance(data, dict) else data.model_dump(mode="json", exclude_unset=True)
    return f"data: {json.dumps(fields | (more or {}))}\n\n".encode()


def finite(logprob: float) -> float:
    """Return it as JSON can hold it: a token that was not possible has OpenAI's lowest."""
    return max(logprob, _LOWEST)


def usage_of(lasts: Sequence[Delta], prompts: int = 1) -> CompletionUsage:
    """Return the tokens of all choices; those of a prompt count once, however many answers it has.

    Args:
        lasts: the last delta of each choice, prompt by prompt.
        prompts: how many prompts there were.
    """
    each = max(1, len(lasts) // prompts)
    read = sum(last.input_tokens or 0 for last in lasts[::each])
    written = sum(last.output_tokens or 0 for last in lasts)
    usage = CompletionUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
    cached = [last.cached_tokens for last in lasts[::each] if last.cached_tokens is not None]
    if cached:
        usage.prompt_tokens_details = PromptTokensDetails(cached_tokens=sum(cached))
    return usage


class Form(ABC):
    """How one request's answers are written."""

    prefix: str
    kind: str
    """The `object` of a stream's pieces."""
    prompts = 1
    """How many prompts there are; each may have several answers."""

    def __init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = ""

    def answered_by(self, model: str) -> None:
        """Note which model it is; to be called before anything is written."""
        self.model = model

    @abstractmethod
    def routed(self) -> list[dict[str, Any]]:
        """Return the conversation that decides which model answers."""

    @abstractmethod
    def asked_text(self) -> Any:
        """Return the conversation or the prompts, for the log of those who want them there."""

    @abstractmethod
    def requests(self, options: ServeOptions) -> list[GenerationRequest]:
        """Return what to ask the engine, for each choice.

        Raises:
            InvalidInputError: it cannot be asked.
        """

    @abstractmethod
    def whole(self, answers: Answers) -> BaseModel:
        """Return the answer that is not streamed."""

    @abstractmethod
    def opening(self, index: int) -> bytes:
        """Return what a choice's stream begins with."""

    @abstractmethod
    def piece(self, index: int, delta: Delta) -> bytes:
        """Return a choice's next piece; nothing where the delta has nothing to show."""

    @abstractmethod
    def ending(self, usage: CompletionUsage | None, more: dict[str, Any] | None) -> bytes:
        """Return a stream's last piece, which belongs to no choice."""

    def _head(self) -> str:
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        return f"data: {json.dumps(head)[:-1]}, "
