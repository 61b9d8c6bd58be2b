"""The server of an entry of kind "openai": its key, a client of it, and whether it answers and has the model."""

import importlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from chancellor.catalog import ModelSpec
from chancellor.errors import CatalogError, EngineStartError, MissingDependencyError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Trouble", "address", "api_key", "connect", "look", "patiently", "reason_of", "unknown_arguments"]

logger = logging.getLogger(__name__)

_CONNECT_S: Final = 5.0
_KEEP_S: Final = 2.0
"""How long an idle connection is kept: less than servers do, so that none is closed just as it is used again."""
_LOOK_S: Final = 3.0
_PATIENCE_S: Final = 4.0
"""How long a server that does not answer is asked again at a start: it may be just restarting."""
_SHOWN: Final = 8
_LONGEST: Final = 500
_ARGUMENTS: Final = {"default_headers", "default_query", "extra_body"}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a server cannot be asked. Its address and its words are in the hint: callers see the message."""

    kind: Literal["refused", "silent", "failing", "wrong"]
    """No connection; no answer in time; an error of the server's own; or what waiting does not change."""
    message: str
    hint: str

    @property
    def certain(self) -> bool:
        """Whether one look is enough to know. Others may pass: a router says so until it knows which replica died."""
        return self.kind in ("refused", "wrong")


def api_key(spec: ModelSpec) -> str:
    """Return the key that the entry's server wants, or something in its place.

    Raises:
        CatalogError: the environment variable with the key is not set.
    """
    name = spec.engine.api_key_env
    if name is None:
        return "none"
    if not (key := os.environ.get(name, "")):
        raise CatalogError(
            f"{spec.name!r} needs the key in {name}, which is not set.", hint=f"Set it: export {name}=..."
        )
    return key


def address(spec: ModelSpec) -> str:
    """Return the server's base URL as it may be shown: without a password."""
    url = spec.engine.base_url or ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl().rstrip("/")


def unknown_arguments(spec: ModelSpec) -> list[str]:
    """Return which of the entry's further arguments (`vllm`) nothing takes."""
    return sorted(spec.engine.vllm.keys() - _ARGUMENTS)


def connect(spec: ModelSpec) -> "AsyncOpenAI":
    """Return a client of the entry's server. Nothing is sent yet.

    Raises:
        MissingDependencyError: openai or tenacity is not installed.
        EngineStartError: the key is not set, or the URL is none.
    """
    for package in ("openai", "tenacity"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingDependencyError.of(package, "remote") from None
    import openai

    options = spec.engine
    if unknown := unknown_arguments(spec):
        logger.warning("%s: %s under [models.engine.vllm] is not sent to its server", spec.name, ", ".join(unknown))
    try:
        key = api_key(spec)
    except CatalogError as error:  # another model may do without one
        raise EngineStartError(error.message, hint=error.hint) from error
    timeout = openai.Timeout(None, connect=_CONNECT_S)  # how long an answer may take is the request's to say
    # httpx, or what came after it: whatever this release of openai stands on.
    library: Any = importlib.import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    client = openai.DefaultAsyncHttpxClient(timeout=timeout, limits=library.Limits(keepalive_expiry=_KEEP_S))
    try:
        return openai.AsyncOpenAI(
            base_url=options.base_url,
            api_key=key,
            max_retries=0,  # a request that failed is the pool's to ask again, or to take elsewhere
            timeout=timeout,
            default_headers=options.vllm.get("default_headers"),
            default_query=options.vllm.get("default_query"),
            http_client=client,
        )
    except Exception as error:  # of the HTTP library's own
        raise EngineStartError(
            f"The address of the server of {spec.name!r} is none.",
            hint=f"Set base_url under [models.engine]; {address(spec)!r} is no URL: {error}.",
        ) from error


async def patiently(client: "AsyncOpenAI", spec: ModelSpec) -> Trouble | None:
    """Look at the server until it answers, but no longer than a few seconds."""
    import tenacity

    looking = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_delay(_PATIENCE_S),
        wait=tenacity.wait_random_exponential(multiplier=0.4, max=1.0),
        retry=tenacity.retry_if_result(lambda trouble: trouble is not None and trouble.kind != "wrong"),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    return await looking(look, client, spec)


async def look(client: "AsyncOpenAI", spec: ModelSpec) -> Trouble | None:
    """Ask the server for its models; return what is wrong, or None if the entry's is among them.

    A server without such a list is asked for its health. Its health alone would not do: that of vLLM's router is bad as
    soon as one of its replicas is gone.
    """
    import openai

    where, name, source = address(spec), spec.name, spec.source
    asking = client.with_options(timeout=_LOOK_S, max_retries=0)
    check = f"try: curl {where}/models"
    try:
        try:
            names = _names(await asking.get("/models", cast_to=object))
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405, 501):
                raise
            names = None
            await asking.get(f"{str(client.base_url).rstrip('/').removesuffix('/v1')}/health", cast_to=object)
    except openai.APITimeoutError:
        return Trouble("silent", f"The server of {name!r} does not answer.", f"See what it is doing; {check}")
    except openai.APIConnectionError as error:
        hint = f"Start it, or set base_url under [models.engine] ({error.__cause__ or error}); {check}"
        return Trouble("refused", f"The server of {name!r} cannot be reached.", hint)
    except openai.APIStatusError as error:
        return _refusal(error, spec, where, check)
    except Exception as error:  # noqa: BLE001 - a URL that is none has an error of the HTTP library's own
        hint = f"Check base_url under [models.engine], {where!r}: most end in /v1 ({error})."
        return Trouble("wrong", f"The server of {name!r} cannot be asked.", hint)
    if names is None or source in names:
        return None
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    has = ", ".join(names[:_SHOWN]) + more or "none"
    hint = f"It has: {has}. Set source to one of them. It is at {where}."
    return Trouble("wrong", f"The server of {name!r} has no model {source!r}.", hint)


def reason_of(error: BaseException) -> str:
    """Return what a server gave as its reason, on one line."""
    body = getattr(error, "body", None)
    told = (body.get("message") or body.get("detail")) if isinstance(body, dict) else body
    text = told if isinstance(told, str) and told else getattr(error, "message", None) or error
    return " ".join(str(text).split())[:_LONGEST]


def _refusal(error: Any, spec: ModelSpec, where: str, check: str) -> Trouble | None:
    status: int = error.status_code
    if status in (401, 403):
        variable = spec.engine.api_key_env
        named = f"Check the key in {variable}." if variable else 'Name the variable with one: api_key_env = "NAME".'
        why = f"The server of {spec.name!r} does not take the key ({status})."
        return Trouble("wrong", why, f"{named} It is at {where}.")
    if status >= 500:
        hint = f"It says: {reason_of(error)}; {check}"
        return Trouble("failing", f"The server of {spec.name!r} is not ready ({status}).", hint)
    return None  # it answers, and has neither list nor health, or is busy: the first request will show


def _names(listed: object) -> list[str] | None:
    """Return the models' names; None where it is no such list."""
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        return None
    return [str(one["id"]) for one in data if isinstance(one, dict) and "id" in one]
