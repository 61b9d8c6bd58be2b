"""From what a server answers to what its caller gets.

Callers of the endpoint see messages; whoever runs it sees hints, too, which have the server's address and its words.
"""

import math
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from chancellor.catalog import ModelSpec
from chancellor.engines.remote_server import address, reason_of
from chancellor.errors import (
    ChancellorError,
    EngineBusyError,
    EngineDiedError,
    GenerationTimeoutError,
    InvalidInputError,
    PromptTooLongError,
    UpstreamError,
)

__all__ = ["error_of", "lost", "status_of", "wants_other_limit"]

_TOO_LONG: Final = re.compile(
    r"context.?(length|size|window)|longer than the maximum model length|prompt is too long", re.IGNORECASE
)
_LIBRARIES: Final = ("httpx", "httpx2", "httpcore", "httpcore2")


def lost(error: BaseException) -> bool:
    """Return whether the connection failed, rather than the request."""
    import openai

    # Before its third release openai lets the HTTP library's own errors out of a stream.
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (openai.APIConnectionError, OSError)) or library in _LIBRARIES


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status, which within a stream is only the error's code."""
    if isinstance(status := getattr(error, "status_code", None), int):
        return status
    code = str(getattr(error, "code", None))
    return int(code) if re.fullmatch(r"[45]\d\d", code) else None


def wants_other_limit(error: BaseException) -> bool:
    """Return whether the server wants `max_completion_tokens` in place of `max_tokens`."""
    return status_of(error) == 400 and "max_completion_tokens" in str(error)


def error_of(error: Exception, spec: ModelSpec, *, gone: bool, emitted: bool) -> ChancellorError:
    """Return the error that says what to do.

    Args:
        error: from the client.
        spec: the entry.
        gone: whether the server has failed a look since.
        emitted: whether the caller has a part of the answer, with which no other server can go on.
    """
    where, name, status = address(spec), spec.name, status_of(error)
    if lost(error):
        if emitted:
            return UpstreamError(
                f"The connection to the server was lost in the middle of the answer of {name!r}.",
                hint=f"Ask again: what one server has begun, no other one can go on with. It is at {where}.",
            )
        return EngineDiedError(
            f"The connection to the server was lost before {name!r} answered.",
            hint=f"Ask again, and see whether it runs: curl {where}/models",
        )
    said = f"{where} says: {reason_of(error)}"
    if emitted:
        return UpstreamError(
            f"The server broke off in the middle of the answer of {name!r}.",
            hint=f"Ask again; its log may say more. {said}",
        )
    if status is None:
        return UpstreamError(
            f"The server of {name!r} answered something that is not of OpenAI's form.",
            hint=f"Check base_url under [models.engine]: is it a server that speaks OpenAI's protocol? {said}",
        )
    return _of_status(status, said, error, spec, gone=gone)


def _of_status(status: int, said: str, error: Exception, spec: ModelSpec, *, gone: bool) -> ChancellorError:
    where, name = address(spec), spec.name
    variable = spec.engine.api_key_env
    if status in (400, 413, 422):
        reason = _without_address(reason_of(error), where)  # which is about the caller's request
        if _TOO_LONG.search(f"{reason} {getattr(error, 'code', '')}"):
            hint = "Shorten the conversation, or let the server take a longer context."
            return PromptTooLongError(f"The prompt is too long for {name!r}: {reason}", hint=hint)
        return InvalidInputError(f"The server of {name!r} refuses the request: {reason}")
    if status in (401, 403):
        hint = f"Check the key in {variable}." if variable else 'Name the variable with one: api_key_env = "NAME".'
        return UpstreamError(f"The server of {name!r} does not take the key ({status}).", hint=f"{hint} {said}")
    if status == 404:
        hint = f"See what it has: curl {where}/models; base_url under [models.engine] ends in /v1 for most servers."
        return UpstreamError(f"The server of {name!r} has no model {spec.source!r} (404).", hint=f"{hint} {said}")
    if status in (408, 504):
        return GenerationTimeoutError(f"The server of {name!r} gave up on the answer ({status}).")
    if status == 429 or (status == 503 and not gone):
        busy = EngineBusyError(
            f"The server of {name!r} takes no more requests now ({status}).", hint=f"Ask again later. {said}"
        )
        busy.retry_after_s = _retry_after_s(error)
        return busy
    if status == 502 or gone:
        return EngineDiedError(
            f"The server cannot answer with {name!r} ({status}).",
            hint=f"Ask again, and see whether it runs: curl {where}/models. {said}",
        )
    return UpstreamError(f"The server of {name!r} failed ({status}).", hint=f"Its log may say why. {said}")


def _without_address(reason: str, where: str) -> str:
    return reason.replace(where, "...").replace(urlsplit(where).netloc or where, "...")


def _retry_after_s(error: Exception) -> float:
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    asked, seconds = headers.get("retry-after", ""), math.nan
    with suppress(ValueError):
        seconds = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(asked)
    if math.isnan(seconds):
        with suppress(ValueError):
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
    return max(0.0, seconds) if math.isfinite(seconds) else 1.0
