"""The application: routes, what stands before them, and what lives as long as it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from chancellor.catalog import Catalog
from chancellor.engines import EnginePool, default_pool
from chancellor.errors import ChancellorError
from chancellor.server.choice import Chooser
from chancellor.server.errors import Refusal, refusal_of
from chancellor.server.guard import OPEN, BodyLimit, Concurrency, Hosts, Keys, local_names
from chancellor.server.logs import RequestLog
from chancellor.server.options import ServeOptions
from chancellor.server.routes import router
from chancellor.server.service import Service
from chancellor.server.static import router as page
from chancellor.telemetry.prometheus import PrometheusExporter

__all__ = ["create_app"]

logger = logging.getLogger(__name__)


def create_app(
    catalog: Catalog | str | Path | None = None,
    options: ServeOptions | None = None,
    *,
    pool: EnginePool | None = None,
    analyze: Any = None,
    select: Any = None,
) -> FastAPI:
    """Return the endpoint as an ASGI application, to be served or mounted.

    Args:
        catalog: the models, or the path of a catalog file; None finds one as the command line does.
        options: limits, keys, and the rest; None takes them from the environment.
        pool: where the engines run; None takes the process's.
        analyze: replaces the graph's first node, which judges how hard a question is.
        select: replaces its second node, which chooses the model.

    Raises:
        CatalogFileError: the catalog cannot be read, or names a model like the virtual one.
        InvalidInputError: the options cannot be used.
    """
    options = options if options is not None else ServeOptions()
    models = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
    pool = pool if pool is not None else default_pool()
    service = Service(models, options, pool, Chooser(models, pool, analyze, select))
    registry = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        exporter = PrometheusExporter(registry, pool)
        starting = asyncio.create_task(service.readiness.prepare())
        try:
            yield
        finally:
            starting.cancel()
            exporter.close()

    app = FastAPI(
        title="Chancellor",
        summary="OpenAI-compatible, with the Chancellor's choice behind it.",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # POSTs would not follow, and the redirect names whatever host the caller named
    )
    app.state.chancellor, app.state.registry = service, registry
    app.include_router(router)
    app.include_router(page)
    app.add_exception_handler(ChancellorError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    keys = options.keys()
    if keys:
        _describe_keys(app)
    hosts = options.allowed_hosts or (() if keys else local_names(options.host))
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, most=int(options.max_body_mib * 2**20), seconds=options.body_timeout_s)
    app.add_middleware(Concurrency, most=options.max_requests)
    app.add_middleware(Keys, keys=keys)
    app.add_middleware(Hosts, names=hosts)
    app.add_middleware(RequestLog, registry=registry)
    return app


def _describe_keys(app: FastAPI) -> None:
    """Let the schema say where a key is needed; it is asked for before the routes, which know nothing of it."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        scheme = {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
        schema.setdefault("components", {})["securitySchemes"] = {"key": scheme}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if path in OPEN else [{"key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation does


def _version() -> str:
    from importlib.metadata import version

    return version("chancellor")


async def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error) if isinstance(error, ChancellorError) else Refusal(500, str(error), "server_error")
    request.state.notes["error"] = type(error).__name__
    if refusal.status >= 500:
        logger.warning("%s: %s", type(error).__name__, error)
    return refusal.response()


async def _invalid(_: Request, error: Exception) -> Response:
    found: dict[str, Any] = {"loc": (), "msg": str(error)}
    body: Any = None
    if isinstance(error, RequestValidationError):
        found, body = error.errors()[0], error.body
    if isinstance(body, bytes) and body:  # which would be parsed if it were JSON
        return Refusal(415, "The body has to be JSON, with content-type: application/json.").response()
    message = found["msg"].removeprefix("Value error, ")
    if found["loc"] == ("body",) and found["type"] != "value_error":
        return Refusal(400, "The body has to be a JSON object.").response()
    if found["type"] == "json_invalid":
        return Refusal(400, f"The body is no JSON: {found.get('ctx', {}).get('error', message)}.").response()
    param = _param(found, body)
    return Refusal(400, f"{param}: {message}." if param else f"{message}.", param=param).response()


def _param(found: dict[str, Any], body: Any) -> str | None:
    """Name the field by its path in the body: pydantic's has the types that it tried, too."""
    path: list[str] = []
    for step in found["loc"]:
        if (isinstance(body, dict) and step in body) or (isinstance(body, list) and isinstance(step, int)):
            body = body[step]
            path.append(str(step))
    if found["type"] == "missing" and found["loc"][-1] != "body":
        path.append(str(found["loc"][-1]))
    return ".".join(path) or None


async def _http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = error.detail if isinstance(error, HTTPException) else str(error)
    if status == 404:
        message = "There is nothing here. The routes are listed at /openapi.json."
    response = Refusal(status, str(message)).response()
    response.headers.update((isinstance(error, HTTPException) and error.headers) or {})
    return response
