"""Models on servers: whether the server answers, and has the model."""

import os
from collections.abc import Iterator
from typing import Final

from chancellor.catalog import ModelSpec
from chancellor.doctor.finding import Finding, ok, warning

__all__ = ["server"]

_LIMIT_S: Final = 3.0


def server(spec: ModelSpec) -> Iterator[Finding]:
    """Make a client of the entry's server as a run would, and ask it for the models it has."""
    import httpx

    from chancellor.engines.remote_server import connect, unknown_arguments

    connect(spec)  # which says what is missing: a package, or the key
    options = spec.engine
    if unknown := unknown_arguments(spec):
        fix = f"Put {', '.join(unknown)} into extra_body there, if the server is to have it, or leave it out"
        yield warning("arguments", f"[models.engine.vllm] has {', '.join(unknown)}, which is not sent", fix)
    url = f"{(options.base_url or '').rstrip('/')}/models"
    key = os.environ.get(options.api_key_env or "")
    try:
        answer = httpx.get(url, timeout=_LIMIT_S, headers={"Authorization": f"Bearer {key}"} if key else {})
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        fix = f"Start the server (vllm serve {spec.source}), or set base_url under [models.engine]; try: curl {url}"
        yield warning("server", f"{options.base_url} does not answer: {str(problem) or type(problem).__name__}", fix)
        return
    if answer.status_code in (401, 403):
        message = f"{options.base_url} wants a key ({answer.status_code})"
        fix = f"export {options.api_key_env or 'NAME'}=..."
        yield warning(
            "server", message, fix if options.api_key_env else f'{fix}, and api_key_env = "NAME" in the entry'
        )
        return
    if answer.status_code != httpx.codes.OK:
        message = f"{url} answers {answer.status_code}"
        yield warning("server", message, "base_url under [models.engine] ends in /v1 for most servers")
        return
    names = _names(answer)
    if names and spec.source not in names:
        message = f"{options.base_url} has no model {spec.source!r}, but {', '.join(names[:8])}"
        yield warning("server", message, f'Set source = "{names[0]}", or serve the other model')
    else:
        yield ok("server", f"{options.base_url} answers{', and has the model' if names else ''}")


def _names(answer: object) -> list[str]:
    try:
        data = answer.json()["data"]  # type: ignore[attr-defined]
        return [str(model["id"]) for model in data]
    except (ValueError, KeyError, TypeError):
        return []  # it speaks something like the protocol; the first request will show
