"""Many callers of a server at once."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx


class Crowd:
    """Callers all at once, of whom a third gives up.

    Args:
        url: of the server.
        number: how many.
        body: what each of them asks, but for the question.
    """

    def __init__(self, url: str, number: int, body: dict[str, Any]) -> None:
        self._url, self._number, self._body = url, number, body
        self._random = random.Random(7)
        self.outcomes: list[str] = []
        self.statuses: set[int] = set()

    async def come(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=300, limits=limits) as client:
            self.outcomes = await asyncio.gather(*(self._one(client, number) for number in range(self._number)))

    async def _one(self, client: httpx.AsyncClient, number: int) -> str:
        stream = number % 2 == 0
        body = {**self._body, "max_tokens": 12, "ignore_eos": True, "stream": stream}
        body["messages"] = [{"role": "user", "content": f"Say something about the number {number}."}]
        task = asyncio.create_task(self._streamed(client, body) if stream else self._plain(client, body))
        if number % 3 == 0:
            await asyncio.wait({task}, timeout=self._random.uniform(0, 8))
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                return "gone"
        return await task

    async def _plain(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        answer = await client.post("/v1/chat/completions", json=body)
        self.statuses.add(answer.status_code)
        whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 12
        return "answered" if whole else f"{answer.status_code}: {answer.text[:200]}"

    async def _streamed(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            self.statuses.add(answer.status_code)
            lines = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
        whole = lines[-1] == "data: [DONE]" and '"finish_reason":"length"' in lines[-2].replace(": ", ":")
        return "answered" if whole else f"{answer.status_code}: {lines[-2:]}"


async def streams(url: str, body: dict[str, Any], act: Callable[[], Any], number: int = 6) -> list[list[str]]:
    """Stream some answers; act as soon as each of them has brought a few tokens."""
    begun = [asyncio.Event() for _ in range(number)]

    async def one(client: httpx.AsyncClient, index: int) -> list[str]:
        messages = [{"role": "user", "content": f"Tell a long story about the number {index}."}]
        chunks: list[str] = []
        async for chunk in _data(client, {**body, "messages": messages, "stream": True}):
            chunks.append(chunk)
            if len(chunks) == 4:
                begun[index].set()
        return chunks

    async with httpx.AsyncClient(base_url=url, timeout=240) as client:
        tasks = [asyncio.create_task(one(client, index)) for index in range(number)]
        await asyncio.gather(*(event.wait() for event in begun))
        act()
        return list(await asyncio.gather(*tasks))


async def _data(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[str]:
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")
