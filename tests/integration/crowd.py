"""Many callers of a server at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx


class GoneError(Exception):
    """The caller has hung up."""


class Crowd:
    """Callers all at once. A third of them hangs up: three quarters of these before the first token, the others in the
    middle of a stream.

    Args:
        url: of the server.
        number: how many.
        body: what each of them asks, but for the question.
        patient: nobody hangs up.
    """

    def __init__(self, url: str, number: int, body: dict[str, Any], *, patient: bool = False) -> None:
        self._url, self._number, self._body, self._patient = url, number, body, patient
        self.outcomes: list[str] = []
        self.statuses: set[int] = set()

    @property
    def counts(self) -> dict[str, int]:
        """How many were answered, refused, and have gone; what is not as it should be, in words."""
        return {outcome: self.outcomes.count(outcome) for outcome in set(self.outcomes)}

    async def come(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=300, limits=limits) as client:
            self.outcomes = await asyncio.gather(*(self._one(client, number) for number in range(self._number)))

    async def _one(self, client: httpx.AsyncClient, number: int) -> str:
        stream, leaves = number % 2 == 0, number % 3 == 0 and not self._patient
        early = leaves and number % 12 != 6
        body = {**self._body, "max_tokens": 12, "ignore_eos": True, "stream": stream}
        body["messages"] = [{"role": "user", "content": f"Say something about the number {number}."}]

        async def trace(event: str, _: Any) -> None:
            if early and event.endswith("send_request_body.complete"):
                raise GoneError

        asked = client.build_request("POST", "/v1/chat/completions", json=body, extensions={"trace": trace})
        try:
            if stream:
                return await self._streamed(client, asked, leaves=leaves)
            return self._seen(await client.send(asked))
        except GoneError:
            return "gone"

    def _seen(self, answer: httpx.Response) -> str:
        self.statuses.add(answer.status_code)
        if answer.status_code == 429 and int(answer.headers.get("retry-after", 0)) > 0:
            return "refused"
        whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 12
        return "answered" if whole else f"{answer.status_code}: {answer.text[:200]}"

    async def _streamed(self, client: httpx.AsyncClient, asked: httpx.Request, *, leaves: bool) -> str:
        answer = await client.send(asked, stream=True)
        try:
            if answer.status_code != 200:
                await answer.aread()
                return self._seen(answer)
            self.statuses.add(200)
            lines = []
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line)
                    if leaves:
                        raise GoneError
        finally:
            await answer.aclose()
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
