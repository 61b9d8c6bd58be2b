"""An OpenAI-compatible endpoint as a target; where it is vLLM's own server, its counters are read too."""

import asyncio
import json
import operator
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import urlsplit

from chancellor.bench.targets.base import Ask, Reply, Stopwatch, Target
from chancellor.engines.base import EngineStats
from chancellor.errors import BenchmarkError, GenerationError, MissingDependencyError

__all__ = ["RemoteTarget"]

_DATA: Final = b"data:"
_KEPT_S: Final = 2.0
"""How long a connection is kept for the next request."""
_GAUGES: Final = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
}
_COUNTERS: Final = {
    "vllm:generation_tokens": "output_tokens",
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
    "vllm:num_preemptions": "preemptions",
}
_WANTED: Final = re.compile(rf"(# TYPE )?({'|'.join((*_GAUGES, *_COUNTERS))})(_total)?[ {{]")


class RemoteTarget(Target):
    """A server that speaks OpenAI's /v1/chat/completions."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        name: str | None = None,
        tokenizer: Callable[[], Any] | None = None,
    ) -> None:
        """Take the server's address.

        Args:
            url: with or without /v1 at its end.
            model: as the server calls it; None takes the first that it lists.
            name: in the report; None is the URL's host and port.
            tokenizer: loads the Hugging Face tokenizer of the model, for prompts of exact length.

        Raises:
            BenchmarkError: it is no http URL.
            MissingDependencyError: aiohttp is not installed.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BenchmarkError(f"{url!r} is no URL of a server.", hint="Give e.g. http://127.0.0.1:8000.")
        try:
            import aiohttp
        except ImportError as error:
            raise MissingDependencyError.of("aiohttp", "bench") from error
        self.name = name or parts.netloc.rsplit("@", 1)[-1]
        self.base = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self._load_tokenizer = tokenizer
        self._tokenizer: Any | None = None
        key = os.environ.get("OPENAI_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # As vLLM's own bench client: httpx takes more of a machine that the server may have to share.
        self._aiohttp = aiohttp
        self._client: aiohttp.ClientSession | None = None
        self._stats: EngineStats | None = None

    @property
    def detail(self) -> str:
        return f"OpenAI-compatible server: {self.model or 'its first model'}"

    @property
    def client(self) -> Any:
        """The HTTP client.

        Raises:
            BenchmarkError: the target has not been started.
        """
        if self._client is None:
            raise BenchmarkError(f"The target {self.name!r} is not running.", hint="Start it first.")
        return self._client

    async def start(self) -> None:
        aiohttp = self._aiohttp
        self._client = aiohttp.ClientSession(
            self.base,
            headers=self._headers,
            # As long as an answer may take; a server that does not accept a connection is reported at once.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            # Servers close what is idle for 5 s (uvicorn's default): a request must not meet that.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
        )
        try:
            async with self.client.get("/v1/models") as listed:
                listed.raise_for_status()
                models = [entry["id"] for entry in (await listed.json())["data"]]
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"The server at {self.base} does not list its models: {error or type(error).__name__}.",
                hint="Check that it runs, its address, and OPENAI_API_KEY if it wants a key.",
            ) from error
        if self.model is None and models:
            self.model = models[0]
        if self.model not in models:
            raise BenchmarkError(
                f"The server at {self.base} has no model {self.model!r}.",
                hint=f"It has: {', '.join(models) or 'none'}.",
            )
        if self._load_tokenizer is not None:
            self._tokenizer = await asyncio.to_thread(self._load_tokenizer)
        await self.refresh()

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": ask.messages,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stream": ask.stream,
        }
        if ask.ignore_eos:
            body["ignore_eos"] = True
        if ask.stream:
            body["stream_options"] = {"include_usage": True}
        text: list[str] = []
        usage: dict[str, Any] | None = None
        async with self.client.post("/v1/chat/completions", json=body) as response:
            if not response.ok:
                raise GenerationError(f"HTTP {response.status}", hint=(await response.text())[:500] or None)
            if not ask.stream:
                content = await response.json()
                return _reply(str(content["choices"][0]["message"].get("content") or ""), content.get("usage"))
            async for event in _events(response):
                if "error" in event:
                    raise GenerationError("The server ended the stream with an error.", hint=str(event["error"])[:500])
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    content = choice["delta"].get("content")
                    if content or (choice.get("finish_reason") is None and "role" not in choice["delta"]):
                        stopwatch.piece()
                    text.append(content or "")
        return _reply("".join(text), usage)

    async def tokenizer(self) -> Any | None:
        return self._tokenizer

    async def begin(self) -> bool:
        self._stats = None  # peaks are those of a segment
        try:  # only vLLM's server in development mode has this
            async with self.client.post("/reset_prefix_cache") as emptied:
                return bool(emptied.ok)
        except (self._aiohttp.ClientError, OSError) as error:
            raise BenchmarkError(f"The server at {self.base} is gone: {str(error) or type(error).__name__}.") from error

    async def refresh(self) -> None:
        """Read vLLM's counters from /metrics, if the server has them."""
        try:
            from prometheus_client.parser import text_string_to_metric_families

            async with self.client.get("/metrics") as response:
                lines = (await response.text()).splitlines(keepends=True) if response.ok else []
            # A server has thousands of lines, and parsing takes from the machine that is measured.
            families = list(text_string_to_metric_families("".join(line for line in lines if _WANTED.match(line))))
        except (ImportError, ValueError, OSError, self._aiohttp.ClientError):
            return
        found: dict[str, float] = {}
        for family in families:
            field = _GAUGES.get(family.name) or _COUNTERS.get(family.name)
            for sample in family.samples:
                if field and not sample.name.endswith("_created") and self._ours(sample.labels):
                    # A server with several engines has one of each: counts add up, a share does not.
                    join = max if field == "kv_cache_usage" else operator.add
                    found[field] = join(found.get(field, 0.0), sample.value)
        if "running" not in found:
            return
        running = int(found["running"])
        peak = max(self._stats.peak_running if self._stats else 0, running)
        whole = {name: int(found[name]) for name in (*_COUNTERS.values(), "waiting") if name in found}
        self._stats = EngineStats(running, whole.pop("waiting", None), found.get("kv_cache_usage"), peak, **whole)

    def _ours(self, labels: dict[str, str]) -> bool:
        return labels.get("model_name", self.model) == self.model

    def stats(self) -> EngineStats | None:
        return self._stats

    def processes(self) -> list[int] | None:
        return None

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


async def _events(response: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event; OpenAI's dialect has one line an event, and [DONE] last."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(_DATA) and (payload := line[len(_DATA) :].strip()) != b"[DONE]":
                yield json.loads(payload)


def _reply(text: str, usage: dict[str, Any] | None) -> Reply:
    usage = usage or {}
    details = usage.get("prompt_tokens_details") or {}
    return Reply(text, usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
