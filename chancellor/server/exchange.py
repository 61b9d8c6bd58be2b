"""Answers to one request: all of its choices at once, whole or as they come."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.server.choice import Choice

__all__ = ["ClientGoneError", "gathered", "gone", "streamed", "unless_gone"]

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what the work returns; cancel it when the caller hangs up.

    Raises:
        ClientGoneError: the caller has hung up.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.wait({task, leaving})


async def gone(receive: Receive) -> None:
    """Return when the caller has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def gathered(pool: EnginePool, choice: Choice, requests: Sequence[GenerationRequest]) -> list[list[Delta]]:
    """Return the deltas of each choice."""

    async def one(request: GenerationRequest) -> list[Delta]:
        return [delta async for delta in pool.agenerate(choice.spec, request, choice.ladder)]

    if len(requests) == 1:
        return [await one(requests[0])]
    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def streamed(
    pool: EnginePool, choice: Choice, requests: Sequence[GenerationRequest]
) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield the deltas of all choices as they come, each with the number of its choice."""
    if len(requests) == 1:
        async with aclosing(pool.agenerate(choice.spec, requests[0], choice.ladder)) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    arrived: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

    async def pump(index: int, request: GenerationRequest) -> None:
        try:
            async for delta in pool.agenerate(choice.spec, request, choice.ladder):
                arrived.put_nowait((index, delta))
        except BaseException as error:
            arrived.put_nowait(error)
            raise
        arrived.put_nowait(None)

    tasks = [asyncio.ensure_future(pump(index, request)) for index, request in enumerate(requests)]
    running = len(tasks)
    try:
        while running:
            item = await arrived.get()
            if isinstance(item, tuple):
                yield item
            elif item is None:
                running -= 1
            else:
                raise item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            task.cancelled() or task.exception()  # raised above already, if it was the first
