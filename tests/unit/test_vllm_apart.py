"""An engine in a process of its own, seen from both ends of its line; here they are in one process."""

import asyncio
import pickle
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from enum import StrEnum
from typing import Any, Self

import pytest

from chancellor import ModelSpec, progress
from chancellor.engines import Delta, EngineStats, GenerationRequest, Guide, vllm_apart_worker
from chancellor.engines.hardware import default_frontend
from chancellor.engines.logs import log_file
from chancellor.engines.pool import engine_of
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.vllm import VLLMEngine
from chancellor.engines.vllm_apart import ApartVLLMEngine
from chancellor.engines.vllm_apart_process import FrontEnd, Started
from chancellor.engines.vllm_apart_wire import (
    Frames,
    Ready,
    asked,
    framed,
    request_of,
)
from chancellor.engines.vllm_apart_worker import Worker
from chancellor.engines.vllm_processes import Processes
from chancellor.errors import (
    EngineDiedError,
    EngineStartError,
    GenerationError,
    InvalidInputError,
    OutOfMemoryError,
    PromptTooLongError,
)
from tests import apart
from tests.fakes import FakeEngine

SPEC = ModelSpec(name="m", source="shape:nano", trinity=99)


class Inner(apart.Inner):
    """What is at the other end."""

    async def forget(self) -> None:
        self.calls.append("forget")

    async def sleep(self) -> None:
        self.calls.append("sleep")

    async def wake(self) -> None:
        raise EngineDiedError("It did not wake up.")

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        if request.prompt == "long":
            raise PromptTooLongError("Too long.")
        if request.prompt == "bug":
            raise KeyError("bug")
        if self.report is not None:
            self.report(EngineStats(running=3, waiting=0, kv_cache_usage=0.5, peak_running=3))
            self.report(EngineStats(running=2, waiting=0, kv_cache_usage=0.4, peak_running=3))
        async with aclosing(super().generate(request)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                yield delta


class Hanging(Inner):
    """vLLM's processes hang, while its front end is as lively as ever."""

    async def start(self) -> None:
        self.ended = asyncio.Event()
        self.reason: str | None = None
        await super().start()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        if request.prompt == "hang":
            self.reason = "it has not moved for 30 s"
            await self.ended.wait()
            raise EngineDiedError("It was killed.")
        async for delta in super().generate(request):
            yield delta

    def stalled(self) -> str | None:
        return self.reason

    def kill(self) -> None:
        self.alive = False
        self.ended.set()


class HangingStart(Hanging):
    """So does its warm-up."""

    async def start(self) -> None:
        self.ended = asyncio.Event()
        self.reason = "it has made no token for 600 s"
        await self.ended.wait()
        raise ValueError("interrupted")

    interrupt = Hanging.kill


class EndingStart(Inner):
    """A checkpoint's own code ends the program."""

    async def start(self) -> None:
        raise SystemExit(3)


class Both:
    """Both ends, on one loop."""

    def __init__(self, inner: type[Inner] = Inner) -> None:
        self.engine = ApartVLLMEngine(SPEC)
        self.made: Any = inner
        self.worker: Worker

    @property
    def inner(self) -> Any:
        return self.worker._engine

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.worker = Worker(SPEC, self.made)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self.worker, sock=theirs)
        self.serving = asyncio.create_task(self.worker.run())
        front: Any = self.engine._front
        front.start = lambda: self._started(ours)
        await self.engine.start()
        return self

    def _started(self, line: socket.socket) -> Started:
        frames = Frames()
        messages = waited(self.engine._front, line, frames)
        line.setblocking(False)
        return Started(line, frames, messages)

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()
        await asyncio.wait_for(self.serving, 30)

    async def ask(self, text: str, **options: Any) -> list[Delta]:
        request = GenerationRequest(prompt=text, **options)
        return [delta async for delta in self.engine.generate(request)]


def front_end() -> FrontEnd:
    return ApartVLLMEngine(SPEC)._front


def waited(front: FrontEnd, line: socket.socket, frames: Frames) -> list[Any]:
    """Wait until the engine is ready, as if a process were at the other end that does not end."""
    lives, end = socket.socketpair()
    with lives, end:
        return front.until_ready(line, frames, lives.fileno())


@pytest.fixture(autouse=True)
def inner(fake_engine: type[FakeEngine]) -> type[FakeEngine]:
    return fake_engine


async def test_an_answer_passes_as_it_is() -> None:
    async with Both() as both:
        deltas = await both.ask("a b", stream=True)
        assert [delta.text for delta in deltas] == ["m", " says:", " a", " b"]
        last = deltas[-1]
        assert (last.finish_reason, last.input_tokens, last.output_tokens, last.cached_tokens) == ("stop", 3, 4, 1)
        assert both.engine.facts() == {"weights_gib": 1.5}
        assert both.engine.quantization is None
        assert both.engine.can_sleep
        assert both.engine.healthy()
    assert not both.engine.healthy()
    assert both.inner.closed == ["m"]


async def test_the_time_is_that_of_whoever_asks() -> None:
    """The way there and back is part of it."""
    async with Both() as both:
        began = time.perf_counter()
        last = (await both.ask("a"))[-1]
        assert last.inference_time_s is not None
        assert 0 < last.inference_time_s <= time.perf_counter() - began  # the fake says 0.5
        assert last.time_to_first_token_s == 0.1  # by vLLM's clock, for nobody streams


async def test_many_at_once() -> None:
    async with Both() as both:
        answers = await asyncio.gather(*(both.ask(f"question {number}") for number in range(100)))
    assert ["".join(delta.text for delta in deltas) for deltas in answers] == [
        f"m says: question {number}" for number in range(100)
    ]


async def test_who_leaves_ends_the_request() -> None:
    Inner.delta_s = 0.1
    try:
        async with Both() as both:
            async with aclosing(both.engine.generate(GenerationRequest(prompt="one two three"))) as deltas:  # type: ignore[type-var]
                async for _ in deltas:
                    break
            task = asyncio.create_task(both.ask("four five"))
            async with asyncio.timeout(30):
                while len(both.inner.requests) < 2:  # noqa: ASYNC110 - the fake tells nobody
                    await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})
            async with asyncio.timeout(30):
                while len(both.inner.aborted) < 2:  # noqa: ASYNC110 - the fake tells nobody
                    await asyncio.sleep(0.01)
            assert sorted(both.inner.aborted) == ["four five", "one two three"]
            assert both.engine._inboxes == {}
            assert both.worker._tasks == {}
    finally:
        Inner.delta_s = 0.0


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [("long", PromptTooLongError, "Too long."), ("bug", GenerationError, "KeyError: 'bug'")],
)
async def test_an_error_is_the_callers(text: str, kind: type[Exception], says: str) -> None:
    async with Both() as both:
        with pytest.raises(kind, match=says):
            await both.ask(text)
        assert both.engine.healthy()
        assert "".join(delta.text for delta in await both.ask("next")) == "m says: next"


async def test_calls() -> None:
    async with Both() as both:
        await both.engine.forget()
        await both.engine.sleep()
        assert both.inner.calls == ["forget", "sleep"]
        with pytest.raises(EngineDiedError, match="did not wake"):
            await both.engine.wake()


async def test_stats_and_peaks() -> None:
    async with Both() as both:
        await both.ask("a")
        assert both.engine.stats().running == 2  # the newer of the two within one turn
        assert both.engine.peaks() == (2, 0.4)
        assert both.engine.peaks() == (0, 0.0)


async def test_a_dead_engine_is_known_before_its_error_comes() -> None:
    async with Both() as both:
        with pytest.raises(EngineDiedError):
            await both.ask("die")
        assert not both.engine.healthy()
        with pytest.raises(EngineDiedError, match="not running"):
            await both.ask("a")


async def test_a_death_between_requests_is_noticed() -> None:
    async with Both() as both:
        both.inner.alive = False
        async with asyncio.timeout(30):
            while both.engine.healthy():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_apart_worker, "_FEEL_EVERY_S", 0.0)


@pytest.mark.usefixtures("often")
async def test_an_engine_that_hangs_is_ended_however_lively_its_front_end_is() -> None:
    async with Both(Hanging) as both:
        with pytest.raises(PromptTooLongError):
            await both.ask("long")
        with pytest.raises(EngineDiedError):
            await asyncio.wait_for(both.ask("hang"), 30)
        assert not both.engine.healthy()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("inner", "match"), [(HangingStart, "hung.*no token for 600 s"), (EndingStart, "did not start: SystemExit: 3")]
)
async def test_a_start_that_would_not_end(inner: type[Inner], match: str) -> None:
    both = Both(inner)
    with pytest.raises(EngineStartError, match=match):
        async with both:
            pass
    await asyncio.wait_for(both.serving, 30)


async def test_only_what_the_engine_does_counts_as_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Both() as both:
        beats: list[bool] = []
        monkeypatch.setattr(both.engine._pulse, "beat", lambda: beats.append(True))
        with pytest.raises(PromptTooLongError):
            await both.ask("long")
        assert not beats
        await both.ask("a")
        assert beats


async def test_a_line_that_is_cut_ends_what_is_under_way() -> None:
    Inner.delta_s = 10.0
    try:
        async with Both() as both:
            under_way = asyncio.create_task(both.ask("a"))
            called = asyncio.create_task(both.engine.forget())
            await called
            assert both.worker._transport is not None
            both.worker._transport.abort()
            with pytest.raises(EngineDiedError, match="ended while it answered"):
                await asyncio.wait_for(under_way, 30)
            assert not both.engine.healthy()
    finally:
        Inner.delta_s = 0.0


async def test_what_keeps_it_from_starting(inner: type[FakeEngine]) -> None:
    inner.fail_starts = 1
    both = Both()
    with pytest.raises(EngineStartError, match="The fake did not start"):
        async with both:
            pass
    await asyncio.wait_for(both.serving, 30)


async def test_progress_is_passed_on() -> None:
    heard: list[Any] = []
    ours, theirs = socket.socketpair()
    step = progress.Progress(stage="start", model="m", message="importing", completed=None, total=None)
    with ours, theirs:
        theirs.sendall(framed([("progress", step)]) + framed([("failed", EngineStartError("No."))]))
        with progress.listening(heard.append), pytest.raises(EngineStartError, match="No"):
            waited(front_end(), ours, Frames())
    assert heard == [step]


async def test_a_death_right_after_the_start_is_not_lost() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(framed([("begun",), ("ready", Ready(None, {}, False, ("/m", None))), ("died",)]))
        assert waited(front_end(), ours, Frames()) == [("died",)]


def test_a_process_that_ends_while_a_copy_of_its_line_is_open() -> None:
    """A child that the program has forked meanwhile has one."""
    ours, theirs = socket.socketpair()
    lives, end = socket.socketpair()
    end.close()
    with ours, theirs, lives, pytest.raises(EOFError):
        front_end().until_ready(ours, Frames(), lives.fileno())


class Colour(StrEnum):
    """Known in this program only."""

    RED = "red"


async def test_no_class_of_the_callers_has_to_be_known_elsewhere() -> None:
    tool = {"type": "function", "function": {"name": "paint", "parameters": {"enum": list(Colour)}}}
    request = GenerationRequest(
        [{"role": "user", "content": "a"}],
        tools=(tool,),
        guide=Guide("choice", list(Colour)),
        stop=(Colour.RED,),
        logit_bias=((3, 0.5),),
        answered=(1, 2),
        timeout_s=2.5,
    )
    back = request_of(pickle.loads(pickle.dumps(asked(request))))
    assert back == request
    assert type(back.stop[0]) is str
    assert request_of(asked(GenerationRequest(prompt=(1, 2)))).prompt == (1, 2)
    async with Both() as both:
        assert [delta.text async for delta in both.engine.generate(request)]


async def test_a_request_that_cannot_be_passed_on_is_the_callers() -> None:
    async with Both() as both:
        request = GenerationRequest([{"role": "user", "content": "a"}], tools=({"function": lambda: None},))
        with pytest.raises(InvalidInputError, match="JSON"):
            [delta async for delta in both.engine.generate(request)]
        assert both.engine._inboxes == {}
        assert both.engine.healthy()


def test_a_start_that_is_interrupted_is_asked_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, called = ApartVLLMEngine(SPEC), []
    front = engine._front
    monkeypatch.setattr(front, "_hang_up", lambda: called.append("cut"))
    monkeypatch.setattr(engine, "kill", lambda: called.append("kill"))
    engine.interrupt()
    engine.interrupt()
    assert called == ["cut"]
    assert front._interrupted is not None
    front._interrupted -= 10
    engine.interrupt()
    assert called == ["cut", "kill"]


def test_what_waits_for_its_turn_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ApartVLLMEngine(SPEC)
    assert engine.stalled() is None
    later = time.monotonic() + 5
    monkeypatch.setattr("chancellor.engines.pulse.time.monotonic", lambda: later + 3600)
    assert engine.stalled() is None
    monkeypatch.setattr("chancellor.engines.pulse.time.monotonic", lambda: later + 3605)
    assert engine.stalled() is None


class TestStillborn:
    """A process that ends before it is ready."""

    def test_it_says_so(self) -> None:
        error = front_end().stillborn(1, PostMortem())
        assert type(error) is EngineStartError
        assert "exit code 1" in str(error)

    def test_it_hangs_as_it_ends(self) -> None:
        error = front_end().stillborn(None, PostMortem())
        assert type(error) is EngineStartError
        assert "had to be killed" in str(error)

    def test_the_kernel_has_killed_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kills = [3]
        monkeypatch.setattr("chancellor.memory.cgroup.oom_kills", lambda: kills[-1])
        postmortem = PostMortem()
        kills.append(4)
        error = front_end().stillborn(-9, postmortem)
        assert isinstance(error, OutOfMemoryError)
        assert "the kernel has killed a process" in str(error)

    def test_somebody_has_killed_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("chancellor.memory.cgroup.oom_kills", lambda: 3)
        error = front_end().stillborn(-9, PostMortem())  # the kernel says that it has not
        assert type(error) is EngineStartError
        assert "exit code -9" in str(error)

    def test_its_log_says_that_memory_was_too_little(self) -> None:
        postmortem = PostMortem()
        with log_file().open("a") as log:
            log.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
        assert isinstance(front_end().stillborn(-6, postmortem), OutOfMemoryError)

    def test_somebody_wanted_it(self) -> None:
        engine = ApartVLLMEngine(SPEC)
        engine.interrupt()
        assert "interrupted" in str(engine._front.stillborn(-9, PostMortem()))


class TestWhichOne:
    """`[models.engine] frontend`."""

    @pytest.mark.parametrize(("gpus", "kind"), [([], VLLMEngine), ([object()], ApartVLLMEngine)])
    def test_by_default(self, monkeypatch: pytest.MonkeyPatch, gpus: list[Any], kind: type[Any]) -> None:
        monkeypatch.setattr("chancellor.engines.hardware.list_gpus", lambda: gpus)
        assert default_frontend() == ("process" if gpus else "thread")
        assert type(engine_of(SPEC)) is kind

    @pytest.mark.parametrize(("where", "kind"), [("thread", VLLMEngine), ("process", ApartVLLMEngine)])
    def test_as_the_entry_says(self, where: str, kind: type[Any]) -> None:
        options = SPEC.engine.model_copy(update={"frontend": where})
        assert type(engine_of(SPEC.model_copy(update={"engine": options}))) is kind


def test_nothing_to_close() -> None:
    engine = ApartVLLMEngine(SPEC)
    asyncio.run(engine.close())
    assert engine.process_ids() == []
    assert isinstance(engine._processes, Processes)
    assert engine.facts() == {}
    assert engine.tokenizer() is None
    with pytest.raises(EngineDiedError, match="not running"):
        asyncio.run(engine.forget())
