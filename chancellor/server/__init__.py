"""The OpenAI-compatible endpoint: `chancellor serve`, or `create_app` inside of another server."""

from chancellor.errors import MissingDependencyError

try:
    import fastapi  # noqa: F401
    import openai  # noqa: F401
except ImportError as error:
    raise MissingDependencyError.of(error.name, "serve") from error

from chancellor.server.app import create_app
from chancellor.server.options import ServeOptions

__all__ = ["ServeOptions", "create_app"]
