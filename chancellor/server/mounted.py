"""The endpoint under a path of another server: below /chancellor, with its lifespan.

LangGraph's server takes `app` from langgraph.json; engines start with the first request.
"""

from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from chancellor.server.app import create_app
from chancellor.server.options import ServeOptions

__all__ = ["app"]

_inner = create_app(options=ServeOptions(preload=("none",)))


def _lifespan(_: Starlette) -> AbstractAsyncContextManager[Any]:
    return _inner.router.lifespan_context(_inner)  # servers do not run those of what is mounted


app = Starlette(routes=[Mount("/chancellor", app=_inner)], lifespan=_lifespan)
"""`base_url="http://127.0.0.1:2024/chancellor/v1"` for an OpenAI client of `langgraph dev`."""
