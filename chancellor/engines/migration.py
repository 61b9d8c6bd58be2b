"""One answer, whichever engines it takes: what the caller has stays, and a new engine goes on from there.

NVIDIA Dynamo calls it request migration, between workers; here it happens inside one process.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from chancellor.engines.base import Delta, Engine, GenerationRequest, ToolCallPiece
from chancellor.errors import ChancellorError, EngineDiedError

__all__ = ["Migration"]


class Migration:
    """What of an answer has reached the caller, and how it goes on.

    Three ways: a request of which nothing has come is asked again; a plain one goes on after its tokens; one that has
    to follow a guide, that has penalties, or whose text is read by a parser, is made once more from its beginning, of
    which the caller gets what is new. The last needs the same beginning, so that such a request gets a seed.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        # vLLM counts for penalties what it made itself, not what it is given of an answer.
        penalties = bool(request.presence_penalty or request.frequency_penalty)
        self._replayed = request.guide is not None or bool(request.tools) or penalties
        self._began: float | None = None
        self._first_s: float | None = None
        self._tokens: list[int] = []
        self._channels: dict[Any, str] = {}
        self._names: dict[int, tuple[str | None, str | None]] = {}
        self._logprobs = 0
        self._way: _Replayed | None = None
        self.deaths = self.cuts = 0
        self.finished = False
        """Whether the caller has all of the answer."""

    @property
    def emitted(self) -> bool:
        """Whether anything has reached the caller."""
        return bool(self._tokens or self._channels)

    @property
    def text(self) -> str:
        """The text that has reached the caller."""
        return self._channels.get("text", "")

    def request(self, engine: Engine) -> GenerationRequest:
        """Return what to ask the engine."""
        if self._began is None:
            self._began = time.perf_counter()
        self._way = None
        thinks = engine.spec.engine.reasoning_parser is not None and self._request.prompt is None
        replayed = self._replayed or thinks
        if not self.emitted:
            asked = self._request
            if replayed and asked.stream and asked.seed is None and asked.temperature > 0:
                self._request = replace(asked, seed=time.monotonic_ns() % 2**31)
            return self._request
        if replayed or not self._tokens:
            self._way = _Replayed(dict(self._channels), dict(self._names), self._logprobs, len(self._tokens))
            return self._request
        return replace(self._request, answered=tuple(self._tokens), answered_text=self.text)

    def take(self, delta: Delta) -> Iterator[Delta]:
        """Yield what the caller does not have yet."""
        if self._way is not None:
            new = self._way.take(delta)
            if new is None:
                return
            delta = new
        if self._first_s is None and delta.token_ids and self._began is not None:
            self._first_s = time.perf_counter() - self._began
        self._note(delta)
        self.finished = delta.finish_reason is not None
        yield self._finished(delta) if delta.finish_reason is not None and self._moved else delta

    def goes_on(self, *, cut: bool = False) -> bool:
        """Note a death, or that it was cut, which costs no retry; return whether another engine may take over."""
        if cut:
            self.cuts += 1
            return True
        self.deaths += 1
        return self.deaths <= self._request.retries

    @property
    def _moved(self) -> bool:
        return bool(self.deaths or self.cuts)

    def ended(self, error: EngineDiedError) -> EngineDiedError:
        """Return the error that the request ends with, the text that came in it."""
        if not self.deaths:
            ended = EngineDiedError(error.message, hint=error.hint)
            ended.partial = self.text
            return ended
        times = "once" if self.deaths == 1 else f"{self.deaths} times"
        had = f"{len(self._tokens)} tokens of the answer had come" if self.emitted else "nothing of the answer had come"
        ended = EngineDiedError(
            f"{error.message} Its engine has died {times} under this request; {had}.", hint=error.hint
        )
        ended.partial = self.text
        return ended

    def stranded(self, error: ChancellorError) -> EngineDiedError:
        """Return the error for an answer that nobody can go on with."""
        return self.ended(
            EngineDiedError(
                f"The engine {'died' if self.deaths else 'made room for another'}, and did not start again: "
                f"{error.message}",
                hint=error.hint,
            )
        )

    def _note(self, delta: Delta) -> None:
        if not self._request.stream:
            return
        self._tokens += delta.token_ids
        self._logprobs += len(delta.logprobs)
        for channel, text in _channels(delta):
            self._channels[channel] = self._channels.get(channel, "") + text
        for piece in delta.tool_calls:
            if piece.id is not None or piece.name is not None:
                self._names[piece.index] = (piece.id, piece.name)

    def _finished(self, delta: Delta) -> Delta:
        took = None if self._began is None else time.perf_counter() - self._began
        first = self._first_s if self._request.stream else delta.time_to_first_token_s
        return replace(delta, inference_time_s=took, time_to_first_token_s=first)


class _Replayed:
    """Passes on what comes after what the caller has, as long as the beginning is the same."""

    def __init__(
        self, channels: dict[Any, str], names: dict[int, tuple[str | None, str | None]], logprobs: int, tokens: int
    ) -> None:
        self._old, self._names = channels, names
        self._new: dict[Any, str] = {}
        self._logprobs, self._tokens = logprobs, tokens

    def take(self, delta: Delta) -> Delta | None:
        texts: dict[Any, str] = {}
        for channel, text in _channels(delta):
            before = self._new.get(channel, "")
            after = self._new[channel] = before + text
            old = self._old.get(channel, "")
            if not (old.startswith(after) or after.startswith(old)):
                raise EngineDiedError("The engine died, and the new one answers differently.")
            texts[channel] = after[max(len(before), len(old)) :]
        missing = any(len(self._new.get(channel, "")) < len(old) for channel, old in self._old.items())
        if missing and delta.finish_reason is not None:
            raise EngineDiedError("The engine died, and the answer of the new one is shorter than what had come.")
        skipped, self._logprobs = min(self._logprobs, len(delta.logprobs)), max(0, self._logprobs - len(delta.logprobs))
        had, self._tokens = min(self._tokens, len(delta.token_ids)), max(0, self._tokens - len(delta.token_ids))
        pieces = []
        for piece in delta.tool_calls:
            known = piece.index in self._names
            arguments = texts.get(piece.index, "")
            if arguments or not known:
                name = (None, None) if known else (piece.id, piece.name)
                pieces.append(ToolCallPiece(piece.index, *name, arguments))
        new = replace(
            delta,
            text=texts.get("text", ""),
            reasoning=texts.get("reasoning", ""),
            token_ids=delta.token_ids[had:],
            logprobs=delta.logprobs[skipped:],
            tool_calls=tuple(pieces),
        )
        nothing = not (new.text or new.reasoning or new.token_ids or new.tool_calls)
        return None if nothing and new.finish_reason is None else new


def _channels(delta: Delta) -> Iterator[tuple[Any, str]]:
    """Yield the streams of text in a delta: the answer, the thoughts, and each call's arguments by its number."""
    if delta.text:
        yield "text", delta.text
    if delta.reasoning:
        yield "reasoning", delta.reasoning
    for piece in delta.tool_calls:
        yield piece.index, piece.arguments
