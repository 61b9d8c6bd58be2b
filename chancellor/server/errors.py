"""Errors as OpenAI's clients expect them."""

import math
from dataclasses import dataclass
from typing import Final

from openai.types import ErrorObject
from starlette.responses import JSONResponse

from chancellor.errors import (
    CatalogError,
    ChancellorError,
    CheckpointError,
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    GenerationTimeoutError,
    InvalidInputError,
    MissingDependencyError,
    ModelRejectedError,
    NoEligibleModelError,
    PromptTooLongError,
    UnknownChoiceError,
    UnknownModelError,
    UpstreamError,
)

__all__ = ["Refusal", "refusal_of"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def body(self) -> dict[str, object]:
        """Return the JSON that says so."""
        error = ErrorObject(message=self.message, type=self.type, param=self.param, code=self.code)
        return {"error": error.model_dump(exclude_unset=True)}

    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, self.headers())


_KINDS: Final[dict[type[ChancellorError], tuple[int, str, str | None]]] = {
    # The first that fits counts.
    PromptTooLongError: (400, "invalid_request_error", "context_length_exceeded"),
    InvalidInputError: (400, "invalid_request_error", None),
    UnknownModelError: (404, "invalid_request_error", "model_not_found"),
    ModelRejectedError: (404, "invalid_request_error", "model_not_found"),
    UnknownChoiceError: (400, "invalid_request_error", None),
    NoEligibleModelError: (503, "server_error", "no_model"),
    EngineBusyError: (429, "rate_limit_error", "engine_busy"),
    GenerationTimeoutError: (504, "timeout_error", "timeout"),
    UpstreamError: (502, "server_error", "upstream_error"),
    EngineDiedError: (503, "server_error", "engine_died"),
    EngineStartError: (503, "server_error", "engine_unavailable"),
    CheckpointError: (503, "server_error", "engine_unavailable"),
    MissingDependencyError: (503, "server_error", "engine_unavailable"),
    CatalogError: (503, "server_error", "catalog"),
    ChancellorError: (500, "server_error", None),
}
_INSIDE: Final = (429, 500, 502, 503)
"""Statuses whose hints are for whoever runs the server: they name its files and options, and other servers."""


def refusal_of(error: ChancellorError) -> Refusal:
    """Return what the caller is told."""
    status, type_, code = next(found for kind, found in _KINDS.items() if isinstance(error, kind))
    retry = error.retry_after_s if isinstance(error, EngineBusyError) else None
    param = "model" if code == "model_not_found" else None
    message = error.message if status in _INSIDE else f"{error.message} {error.hint}"
    return Refusal(status, message, type_, code, param, retry)
