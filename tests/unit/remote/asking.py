"""How the tests ask a server through an engine."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from chancellor import ModelSpec
from chancellor.catalog import EngineOptions
from chancellor.engines import Delta, GenerationRequest
from chancellor.engines.remote import RemoteEngine
from tests.remote_server import Server

TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}


def far(server: Server | str, name: str = "far", **options: Any) -> ModelSpec:
    url = server if isinstance(server, str) else server.url
    return ModelSpec(name=name, source="m", trinity=97, engine=EngineOptions(kind="openai", base_url=url, **options))


def ask(question: str = "hi", **options: Any) -> GenerationRequest:
    return GenerationRequest(**{"messages": [{"role": "user", "content": question}], "stream": True, **options})


async def all_of(engine: RemoteEngine, request: GenerationRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of another thread, mostly
            await asyncio.sleep(0.01)
