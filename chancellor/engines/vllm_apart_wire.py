"""What passes between this program and a vLLM engine in a process of its own: pickles, each after its length."""

import json
import pickle
import socket
import struct
from dataclasses import dataclass, fields
from typing import Any, Final

from chancellor.engines.base import Delta, GenerationRequest, Guide
from chancellor.errors import ChancellorError, GenerationError, InvalidInputError

__all__ = ["Frames", "Ready", "asked", "framed", "packed", "portable", "receive", "request_of", "unpacked"]

_LENGTH: Final = struct.Struct("!Q")
_CHUNK: Final = 2**18
_TUPLES: Final = ("stop", "tools", "answered")


@dataclass(frozen=True, slots=True)
class Ready:
    """What becomes known with the start of an engine."""

    quantization: str | None
    facts: dict[str, float]
    can_sleep: bool
    tokenizer: tuple[str, str | None] | None
    """Where its Hugging Face tokenizer is, and the revision; None where it has another kind of tokenizer."""


def framed(message: Any) -> bytes:
    """Return a message as it goes over the line."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts messages together from what arrives."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, arrived: bytes) -> list[Any]:
        """Take what has arrived; return the messages that are complete with it."""
        self._bytes += arrived
        messages, at = [], 0
        while (begin := at + _LENGTH.size) <= len(self._bytes):
            end = begin + _LENGTH.unpack_from(self._bytes, at)[0]
            if end > len(self._bytes):
                break
            messages.append(pickle.loads(bytes(self._bytes[begin:end])))  # noqa: S301 - from a process that is ours
            at = end
        del self._bytes[:at]
        return messages


def receive(line: socket.socket, frames: Frames) -> list[Any]:
    """Return the next messages. Blocks until there is one.

    Raises:
        EOFError: the other end is gone.
    """
    while True:
        try:
            arrived = line.recv(_CHUNK)
        except ConnectionError:
            arrived = b""
        if not arrived:
            raise EOFError
        if messages := frames.feed(arrived):
            return messages


def asked(request: GenerationRequest) -> str:
    """Return a request as JSON: it may hold what only the caller's program knows, such as an Enum of its own.

    Raises:
        InvalidInputError: something in it has no JSON.
    """
    values = {field.name: getattr(request, field.name) for field in fields(request)}
    if request.guide is not None:
        values["guide"] = [request.guide.kind, request.guide.value]
    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The request holds something that JSON does not know: {error}.",
            hint="Messages, tools and schemas are made of texts, numbers, lists and dicts.",
        ) from error


def request_of(text: str) -> GenerationRequest:
    """Undo `asked`."""
    sent: dict[str, Any] = json.loads(text)
    values: dict[str, Any] = {name: tuple(value) if name in _TUPLES else value for name, value in sent.items()}
    values["logit_bias"] = tuple((token, bias) for token, bias in values["logit_bias"])
    if isinstance(values["prompt"], list):
        values["prompt"] = tuple(values["prompt"])
    if values["guide"] is not None:
        values["guide"] = Guide(*values["guide"])
    return GenerationRequest(**values)


def packed(delta: Delta) -> Any:
    """Return a delta in as few words as it takes: most have nothing but text and tokens."""
    more = delta.finish_reason or delta.logprobs or delta.reasoning or delta.tool_calls or delta.model
    return delta if more else (delta.text, delta.token_ids)


def unpacked(item: Any) -> Delta:
    """Undo `packed`."""
    return item if isinstance(item, Delta) else Delta(*item)


def portable(error: BaseException) -> ChancellorError:
    """Return an error that survives the way: one of ours, without what caused it."""
    if isinstance(error, ChancellorError):
        try:
            pickle.dumps(error)
        except Exception:  # noqa: BLE001 - an attribute of it cannot be pickled, in whichever way
            return type(error)(error.message, hint=error.hint)
        return error
    return GenerationError(f"{type(error).__name__}: {error}")
