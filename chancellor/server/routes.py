"""The routes."""

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from openai.types import Completion, ErrorObject, Model
from openai.types.chat import ChatCompletion
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chancellor.catalog import ModelSpec
from chancellor.errors import UnknownModelError
from chancellor.server.chat import ChatForm
from chancellor.server.choice import CHANCELLOR
from chancellor.server.completions import CompletionForm
from chancellor.server.readiness import State
from chancellor.server.requests import ChatCompletionRequest, CompletionRequest
from chancellor.server.service import Service

__all__ = ["router"]


class _Asked(Request):
    async def json(self) -> Any:
        """Return what the body says, without rounds of the garbage collector: a million small lists set off many."""
        body, collects = await self.body(), gc.isenabled()
        gc.disable()
        try:
            return json.loads(body)
        finally:
            if collects:
                gc.enable()


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_Asked(request.scope, request.receive))

        return handler


router = APIRouter(route_class=_Route)


class ErrorBody(BaseModel):
    """How an error is told."""

    error: ErrorObject


class ModelList(BaseModel):
    """The models."""

    object: str = "list"
    data: list[Model]


class Report(BaseModel):
    """Whether requests are answered, and what each model's engine is about."""

    status: State
    models: dict[str, dict[str, Any]]
    error: str | None = None


async def _service(request: Request) -> Service:  # not async, it would be called in a thread
    service: Service = request.app.state.chancellor
    return service


Served = Annotated[Service, Depends(_service)]
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"model": ErrorBody, "description": "The request cannot be answered as it stands."},
    401: {"model": ErrorBody, "description": "There is no API key, or a wrong one."},
    404: {"model": ErrorBody, "description": "There is no such model."},
    408: {"model": ErrorBody, "description": "The request took too long to come in."},
    413: {"model": ErrorBody, "description": "The request is too large."},
    429: {"model": ErrorBody, "description": "Too much is under way; Retry-After says when to come again."},
    500: {"model": ErrorBody, "description": "The server failed."},
    502: {"model": ErrorBody, "description": "The server that runs the model failed."},
    503: {"model": ErrorBody, "description": "No engine can answer."},
    504: {"model": ErrorBody, "description": "The answer took too long."},
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered."},
}
_LOOKS: Final = {status: _ERRORS[status] for status in (401, "4XX")}


def _answers(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    stream: dict[str, Any] = {"text/event-stream": {}}
    return {
        200: {"model": model, "content": stream, "description": "The answer, or a stream of its pieces."},
        **_ERRORS,
    }


@router.post("/v1/chat/completions", responses=_answers(ChatCompletion), response_class=JSONResponse)
async def chat_completions(asked: ChatCompletionRequest, request: Request, service: Served) -> Response:
    """Answer a conversation."""
    return await service.respond(request, asked, ChatForm(asked))


@router.post("/v1/completions", responses=_answers(Completion), response_class=JSONResponse)
async def completions(asked: CompletionRequest, request: Request, service: Served) -> Response:
    """Continue a text as it stands."""
    return await service.respond(request, asked, CompletionForm(asked))


@router.get("/v1/models", responses={200: {"model": ModelList}, **_LOOKS})
async def models(service: Served) -> JSONResponse:
    """List the models: first the virtual one, for which the Chancellor chooses."""
    listed = [_virtual(), *(_model(service, spec) for spec in _usable(service))]
    return JSONResponse({"object": "list", "data": listed})


@router.get("/v1/models/{name:path}", responses={200: {"model": Model}, 404: _ERRORS[404], **_LOOKS})
async def model(name: str, service: Served) -> JSONResponse:
    """Return what is known of a model."""
    if name == CHANCELLOR:
        return JSONResponse(_virtual())
    found = next((spec for spec in _usable(service) if spec.name == name), None)
    if found is None:
        known = ", ".join([CHANCELLOR, *(spec.name for spec in _usable(service))])
        raise UnknownModelError(f"There is no model {name!r}.", hint=f"There are: {known}.")
    return JSONResponse(_model(service, found))


def _usable(service: Service) -> list[ModelSpec]:
    return [spec for spec in service.catalog.values() if service.catalog.rejection(spec) is None]


def _virtual() -> dict[str, Any]:
    return {"id": CHANCELLOR, "object": "model", "created": 0, "owned_by": "chancellor"}


def _model(service: Service, spec: ModelSpec) -> dict[str, Any]:
    details = {
        "trinity_score": spec.trinity_score,
        "tier": spec.tier,
        "scheme": spec.scheme,
        "engine": spec.engine.kind,
        "max_model_len": spec.context_window,
        "state": service.pool.state(spec),
    }
    return {**_virtual(), "id": spec.name, "chancellor": details}


@router.head("/health", include_in_schema=False)
async def healthy() -> Response:
    """Say it to balancers that want no more than a status."""
    return Response()


@router.head("/ready", include_in_schema=False)
async def is_ready(service: Served) -> Response:
    """Say it to balancers that want no more than a status."""
    return Response(status_code=200 if service.readiness.state == "ready" else 503)


@router.get("/health", responses={"4XX": _ERRORS["4XX"]})
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get(
    "/ready",
    responses={
        200: {"model": Report},
        503: {"model": Report, "description": "It starts, drains, or has failed."},
        "4XX": _ERRORS["4XX"],
    },
)
async def ready(service: Served) -> JSONResponse:
    """Say whether requests are answered, and what each model's engine is about."""
    report = service.readiness.report()
    return JSONResponse(report, 200 if report["status"] == "ready" else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **_LOOKS})
async def metrics(request: Request) -> Response:
    """Return metrics for Prometheus."""
    # In a thread: the engines are asked, which may take a moment.
    text = await asyncio.to_thread(generate_latest, request.app.state.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
