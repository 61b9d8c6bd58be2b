"""An engine that answers the same way every time, until it is told to fail."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from chancellor.catalog import ModelSpec
from chancellor.engines import Delta, Engine, EnginePool, EngineStats, GenerationRequest
from chancellor.engines.ladder import Ladder
from chancellor.engines.room import Room
from chancellor.errors import ChancellorError, EngineDiedError
from chancellor.fallbacks import FallbackOptions
from chancellor.memory import Device, Estimate

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs")


class Words:
    """A tokenizer: a token is the number of a word, with a space before it."""

    chat_template = "yes"

    def decode(self, tokens: Any, **_: Any) -> str:
        return text_of(tokens)


def text_of(tokens: Any) -> str:
    return "".join(f" {WORDS[token % len(WORDS)]}" for token in tokens)


@dataclass
class Plan:
    """What goes wrong, by model."""

    start_errors: Mapping[str, list[ChancellorError]] = field(default_factory=dict)
    """Raised by the next starts of a model, one each."""
    deaths: list[int] = field(default_factory=list)
    """After how many tokens of its answer an engine dies, one engine each."""
    start_s: float = 0.0
    token_s: float = 0.0
    hangs: bool = False


class FaultyEngine(Engine):
    """Token n of an answer is n more than the length of the question, whichever engine makes it."""

    kind: ClassVar[str] = "faulty"
    plan: ClassVar[Plan] = Plan()
    starts: ClassVar[list[ModelSpec]] = []
    alive: ClassVar[Counter[str]] = Counter()
    most: ClassVar[int] = 0
    """Most engines that were alive at once."""
    requests: ClassVar[list[GenerationRequest]] = []

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._alive = False
        self._answering = 0

    @classmethod
    def reset(cls, plan: Plan | None = None) -> None:
        cls.plan, cls.most = plan or Plan(), 0
        cls.starts.clear()
        cls.alive.clear()
        cls.requests.clear()

    @property
    def quantization(self) -> str | None:
        return self.spec.scheme

    def tokenizer(self) -> Any:
        return Words()

    async def start(self) -> None:
        self.starts.append(self.spec)
        await asyncio.sleep(self.plan.start_s)
        if errors := self.plan.start_errors.get(f"{self.spec.name}/{self.spec.engine.kind}/{self.spec.scheme}"):
            raise errors.pop(0)
        self._alive = True
        FaultyEngine.alive[self.spec.name] += 1
        FaultyEngine.most = max(FaultyEngine.most, sum(self.alive.values()))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        self.requests.append(request)
        self._answering += 1
        try:
            made = list(request.answered)
            size = len(str(request.messages[-1]["content"]))
            text = request.answered_text
            dies = self.plan.deaths.pop(0) if self.plan.deaths else None
            while len(made) < request.max_tokens:
                await asyncio.sleep(self.plan.token_s)
                while self.plan.hangs and self._alive:  # noqa: ASYNC110 - nobody tells it that it may go on
                    await asyncio.sleep(0.01)
                if dies is not None and len(made) >= dies:
                    self.kill()
                if not self._alive:
                    raise EngineDiedError("The faulty engine died.")
                made.append(size + len(made))
                if request.stream and len(made) < request.max_tokens:
                    whole = text_of(made)
                    yield Delta(whole[len(text) :], (made[-1],))
                    text = whole
            rest = made[-1:] if request.stream else made
            yield Delta(
                text_of(made)[len(text) if request.stream else 0 :],
                tuple(rest),
                finish_reason="length",
                input_tokens=size,
                output_tokens=len(made),
                model=self.spec.name,
                engine=self.kind,
                quantization=self.quantization,
            )
        finally:
            self._answering -= 1

    def healthy(self) -> bool:
        return self._alive

    def stalled(self) -> str | None:
        return "it hangs" if self.plan.hangs and self._answering else None

    def kill(self) -> None:
        FaultyEngine.plan.hangs = False
        if self._alive:
            self._alive = False
            FaultyEngine.alive[self.spec.name] -= 1

    def stats(self) -> EngineStats:
        return EngineStats(running=self._answering, waiting=0, kv_cache_usage=0.0, peak_running=0)

    async def close(self) -> None:
        self.kill()


A = ModelSpec(name="a", source="fake/a", trinity=99.0, parameters=2_000, scheme="int8")

B = ModelSpec(name="b", source="fake/b", trinity=98.0, parameters=1_000)

WAYS = Ladder(FallbackOptions(), lambda: [B])

QUESTION = "abc"

ANSWER = text_of(range(3, 13))


def request(question: str = QUESTION, **options: object) -> GenerationRequest:
    options = {"max_tokens": 10, "stream": True, "retries": 1, **options}
    return GenerationRequest([{"role": "user", "content": question}], **options)  # type: ignore[arg-type]


def whole(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def fail(pool: EnginePool, plan: Plan, asked: GenerationRequest, ways: Ladder | None = WAYS) -> list[Delta]:
    FaultyEngine.reset(plan)
    return list(pool.generate(A, asked, ways))


class Desk(Room):
    """Room for so many units; each model needs one for itself and one for its cache."""

    def __init__(self, size: int) -> None:
        self.size = size

    def expected(self, spec: ModelSpec) -> Estimate:
        return Estimate(("cpu",), weights=1, kv_cache=2, kv_cache_least=1, activations=0, graphs=0, overhead=0)

    def _read(self) -> list[Device]:
        return [Device("cpu", self.size, self.size, self.size)]

    def took(self, *_: object) -> None:
        return None


async def answered(pool: EnginePool, spec: ModelSpec, **options: Any) -> str:
    return whole([delta async for delta in pool.agenerate(spec, request(**options))])


async def until(condition: Any) -> None:
    for _ in range(3000):  # far more than it takes, but on a machine that stands still
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("It did not come.")
