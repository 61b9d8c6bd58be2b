"""Models on servers beside other engines, in the pool and on the ladder."""

import asyncio
from contextlib import suppress

import pytest

from chancellor import Catalog, FallbackOptions, ModelSpec
from chancellor.chat.substitutes import substitutes
from chancellor.engines import Delta, EnginePool, GenerationRequest, remote
from chancellor.engines.ladder import Ladder, label
from chancellor.engines.remote import RemoteEngine
from chancellor.errors import (
    ChancellorError,
    EngineDiedError,
    EngineStartError,
    GenerationError,
    GenerationTimeoutError,
)
from chancellor.settings import settings
from tests.fakes import FakeEngine
from tests.remote_server import Server, chunk, words
from tests.unit.remote.asking import ask, far, text_of, until

HERE = ModelSpec(name="here", source="fake/here", trinity=96, parameters=1_000)


async def gathered(
    pool: EnginePool, spec: ModelSpec, request: GenerationRequest, ladder: Ladder | None = None
) -> list[Delta]:
    return [delta async for delta in pool.agenerate(spec, request, ladder)]


async def test_pool_asks_again(pool: EnginePool, server: Server) -> None:
    server.first["x"] = ["cut"]
    deltas = await gathered(pool, far(server), ask("x", retries=1))
    assert text_of(deltas) == "one two three"
    assert [step["step"] for step in deltas[-1].fallbacks] == ["restart"]


async def test_pool_does_not_go_on_with_half_an_answer(pool: EnginePool, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "one "}), "cut"]
    with pytest.raises(GenerationError, match="in the middle"):
        await gathered(pool, far(server), ask("x", retries=5))
    assert len(server.requests) == 1


async def test_server_restarts_under_the_pool(
    pool: EnginePool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 3600)
    spec = far(server)
    assert text_of(await gathered(pool, spec, ask())) == "one two three"
    server.stop()
    with pytest.raises(EngineDiedError, match="lost before"):
        await gathered(pool, spec, ask())
    with pytest.raises(EngineStartError, match="cannot be reached"):
        await gathered(pool, spec, ask())
    server.start()
    assert text_of(await gathered(pool, spec, ask())) == "one two three"


async def test_another_model_answers(pool: EnginePool, server: Server) -> None:
    spec = far(server)
    server.stop()
    ladder = Ladder(FallbackOptions(), lambda: [HERE])
    deltas = await gathered(pool, spec, ask(), ladder)
    assert text_of(deltas) == "here says: hi"
    [step] = deltas[-1].fallbacks
    assert (step["step"], step["cause"], step["from"]) == ("other_model", "engine", "far (openai)")


async def test_server_answers_in_place_of_an_engine(pool: EnginePool, server: Server) -> None:
    FakeEngine.fail_starts = 100
    deltas = await gathered(pool, HERE, ask(), Ladder(FallbackOptions(), lambda: [far(server)]))
    assert text_of(deltas) == "one two three"
    assert (deltas[-1].model, deltas[-1].fallbacks[-1]["to"]) == ("far", "far (openai)")


async def test_server_that_drains_ends_its_answers(pool: EnginePool, server: Server) -> None:
    spec = far(server)
    server.streams["long"] = [chunk({"content": "a"}), 1.0, *words("b")]
    task = asyncio.create_task(gathered(pool, spec, ask("long")))
    await until(lambda: server.requests)
    server.drain()
    with suppress(EngineDiedError, EngineStartError):
        while True:  # until it refuses
            await gathered(pool, spec, ask())
    with pytest.raises(EngineStartError):  # for which the pool closes what it had
        await gathered(pool, spec, ask())
    assert text_of(await task) == "ab"


async def test_pool_closes_under_a_request(pool: EnginePool, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "a"}), "hang"]
    task = asyncio.create_task(gathered(pool, far(server), ask("x", retries=1)))
    await until(lambda: server.requests)
    await asyncio.to_thread(pool.close)
    with pytest.raises(EngineDiedError):
        await task


async def test_pool_ends_what_is_silent(pool: EnginePool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_STALL_S", "0.3")
    settings.cache_clear()
    server.streams["x"] = ["hang"]
    task = asyncio.create_task(gathered(pool, far(server), ask("x")))
    await until(lambda: server.requests)
    server.silent = True
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(task, 20)
    server.silent = False
    settings.cache_clear()


async def test_timeout(pool: EnginePool, server: Server) -> None:
    server.streams["x"] = [chunk({"content": "a"}), "hang"]
    with pytest.raises(GenerationTimeoutError):
        await gathered(pool, far(server), ask("x", timeout_s=0.3))
    await until(lambda: server.left == ["x"])


class StartsForEver(FakeEngine):
    """Until it is interrupted."""

    async def start(self) -> None:
        self.stopped = asyncio.Event()
        await self.stopped.wait()
        raise EngineStartError("The fake was interrupted.")

    def interrupt(self) -> None:
        self.stopped.set()


async def test_server_does_not_wait_for_an_engine_that_starts(server: Server) -> None:
    pool = EnginePool(lambda spec: RemoteEngine(spec) if spec.engine.kind == "openai" else StartsForEver(spec))
    starting = asyncio.create_task(pool.astart(HERE))
    await until(lambda: pool.state(HERE) == "starting")
    assert text_of(await gathered(pool, far(server), ask())) == "one two three"
    assert not starting.done()
    await asyncio.to_thread(pool.close)
    with pytest.raises(ChancellorError):
        await starting


def test_default_pool_takes_servers(server: Server) -> None:
    pool = EnginePool()
    deltas = list(pool.generate(far(server), ask()))
    assert text_of(deltas) == "one two three"
    assert pool.stats()["far"].running == 0
    assert pool.start_s(far(server)) == 0
    pool.close()


def test_no_steps_but_to_other_models() -> None:
    spec = far("http://127.0.0.1:9/v1")
    ladder = Ladder(FallbackOptions(), lambda: [HERE])
    for cause in ("memory", "scheme", "engine", "import", "checkpoint", "died"):
        assert [(rung.step, rung.spec) for rung in ladder.below(spec, cause)] == [("other_model", HERE)]
    assert not Ladder(FallbackOptions()).leads_on(spec)
    assert label(spec) == "far (openai)"


def test_substitutes() -> None:
    url = "http://127.0.0.1:9/v1"
    sized = far(url, "far").model_copy(update={"parameters": 1_000})
    huge = far(url, "huge").model_copy(update={"parameters": 9_000})
    middle = HERE.model_copy(update={"name": "middle", "parameters": 2_000})
    unsized = far(url, "unsized")
    catalog = Catalog([unsized, huge, sized, HERE, middle])
    assert [one.name for one in substitutes(catalog, middle)] == ["here", "far", "huge", "unsized"]
    assert [one.name for one in substitutes(catalog, unsized)] == ["here", "middle", "huge", "far"]
