"""An engine without a model, for the logic around engines."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import Delta, Engine, EngineStats, GenerationRequest, ToolCallPiece
from chancellor.errors import EngineDiedError, EngineStartError


class FakeEngine(Engine):
    """Answers "<model> says: <question>", a word a delta."""

    kind: ClassVar[str] = "fake"
    started: ClassVar[list[str]] = []
    aborted: ClassVar[list[str]] = []
    closed: ClassVar[list[str]] = []
    requests: ClassVar[list[GenerationRequest]] = []
    fail_starts: ClassVar[int] = 0
    start_s: ClassVar[float] = 0.0
    held: ClassVar[bool] = False
    """Starts take until this is over."""
    delta_s: ClassVar[float] = 0.0

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.alive = False

    @classmethod
    def reset(cls) -> None:
        for calls in (cls.started, cls.aborted, cls.closed, cls.requests):
            calls.clear()
        cls.fail_starts, cls.start_s, cls.delta_s, cls.held = 0, 0.0, 0.0, False

    @property
    def quantization(self) -> str | None:
        return self.spec.scheme

    async def start(self) -> None:
        await asyncio.sleep(self.start_s)
        while FakeEngine.held:  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.005)
        if FakeEngine.fail_starts > 0:
            FakeEngine.fail_starts -= 1
            raise EngineStartError("The fake did not start.")
        self.started.append(self.spec.name)
        self.alive = True

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        self.requests.append(request)
        question = str(request.messages[-1]["content"] if request.prompt is None else request.prompt)
        if question == "die":
            self.alive = False
            raise EngineDiedError("The fake died.")
        if request.tools and question.startswith("call "):
            yield self._call(question.removeprefix("call "))
            return
        words = f"{self.spec.name} says: {question}".split(" ")
        finished = False
        try:
            for index, word in enumerate(words):
                await asyncio.sleep(self.delta_s)
                text = word if index == 0 else f" {word}"
                if index < len(words) - 1:
                    yield Delta(text)
                else:
                    finished = True
                    yield Delta(
                        text,
                        finish_reason="stop",
                        input_tokens=3,
                        output_tokens=len(words),
                        cached_tokens=1,
                        inference_time_s=0.5,
                        time_to_first_token_s=0.1,
                        engine=self.kind,
                        quantization=self.quantization,
                    )
        finally:
            if not finished:
                self.aborted.append(question)

    def _call(self, what: str) -> Delta:
        """Call the tool that the question names, with the JSON that it gives."""
        name, _, arguments = what.partition(" ")
        pieces = (ToolCallPiece(0, "call_1", name), ToolCallPiece(0, arguments=arguments))
        figures = {"input_tokens": 3, "output_tokens": 9, "inference_time_s": 0.5, "engine": self.kind}
        return Delta("", tool_calls=pieces, finish_reason="tool_calls", **figures)  # type: ignore[arg-type]

    def healthy(self) -> bool:
        return self.alive

    def stats(self) -> EngineStats:
        return EngineStats(running=0, waiting=0, kv_cache_usage=0.0, peak_running=0)

    async def close(self) -> None:
        self.alive = False
        self.closed.append(self.spec.name)


def catalog() -> Catalog:
    """A light, a strong and a rejected model, and one with the best score; none is on disk."""
    return Catalog(
        [
            ModelSpec(name="light", source="fake/light", trinity=96.0, parameters=1_000, scheme="int8"),
            ModelSpec(name="best", source="fake/best", trinity=99.0, parameters=2_000),
            ModelSpec(name="strong", source="fake/strong", trinity=97.0, parameters=3_000),
            ModelSpec(name="poor", source="fake/poor", trinity=90.0, parameters=9_000),
        ]
    )
