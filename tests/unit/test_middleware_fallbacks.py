"""TrinityMiddleware beside LangChain's fallbacks and retries, and what it remembers of failures."""

import gc
import weakref
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AnyMessage, HumanMessage
from pydantic import Field

from chancellor import ChatVLLM, TrinityMiddleware
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog

agents = pytest.importorskip("langchain.agents")
middleware = pytest.importorskip("langchain.agents.middleware")

EASY = "What is 2+2?"
HARD = "Please explain to me in detail how the tides of the sea work"


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> EnginePool:
    return EnginePool(fake_engine)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    async def ask(agent: Any, messages: Any) -> list[AnyMessage]:
        state = {"messages": messages}
        done = agent.invoke(state) if request.param == "sync" else await agent.ainvoke(state)
        return list(done["messages"])

    return ask


def trinity(models: Any) -> TrinityMiddleware:
    return TrinityMiddleware(catalog(), models=models)


def own(pool: EnginePool) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=pool)


class Broken(FakeListChatModel):
    responses: list[str] = Field(default=["never"])

    def _call(self, *args: Any, **kwargs: Any) -> str:
        raise ConnectionError("The model is not there.")


class Once(FakeListChatModel):
    """Fails once."""

    responses: list[str] = Field(default=["at last"])
    calls: list[int] = Field(default=[])

    def _call(self, *args: Any, **kwargs: Any) -> str:
        self.calls.append(1)
        if len(self.calls) == 1:
            raise ConnectionError("Not yet.")
        return super()._call(*args, **kwargs)


def backup() -> FakeListChatModel:
    return FakeListChatModel(responses=["from the backup"])


async def test_a_fallback_outside_of_the_middleware(pool: EnginePool, run: Any) -> None:
    """What it asks instead of the one that failed is not routed back to that."""
    fallback = middleware.ModelFallbackMiddleware(Broken(), backup())
    broken = {name: Broken() for name in ("light", "best", "strong")}
    agent = agents.create_agent(own(pool), middleware=[fallback, trinity(broken)])
    found = await run(agent, [HumanMessage(EASY)])
    assert found[-1].text == "from the backup"
    assert "decision" not in found[-1].response_metadata


async def test_a_fallback_inside_of_the_middleware(pool: EnginePool, run: Any) -> None:
    fallback = middleware.ModelFallbackMiddleware(Broken(), backup())
    broken = {name: Broken() for name in ("light", "best", "strong")}
    agent = agents.create_agent(own(pool), middleware=[trinity(broken), fallback])
    found = await run(agent, [HumanMessage(EASY)])
    assert found[-1].text == "from the backup"
    assert found[-1].response_metadata["decision"]["model"] == "light"


async def test_a_failure_is_forgotten_with_its_call(pool: EnginePool, run: Any) -> None:
    """The next call is routed again, also in a conversation and a context that have seen a fallback."""
    flaky = {"light": Broken(), "strong": FakeListChatModel(responses=["strong"])}
    fallback = middleware.ModelFallbackMiddleware(backup())
    agent = agents.create_agent(own(pool), middleware=[fallback, trinity(flaky)])
    found = await run(agent, [HumanMessage(EASY)])
    found = await run(agent, [*found, HumanMessage(HARD)])
    assert [message.text for message in found if message.type == "ai"] == ["from the backup", "strong"]


async def test_a_retry_is_routed(pool: EnginePool, run: Any) -> None:
    retry = middleware.ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    agent = agents.create_agent(own(pool), middleware=[retry, trinity({"light": Once(calls=[])})])
    found = await run(agent, [HumanMessage(EASY)])
    assert found[-1].text == "at last"
    assert found[-1].response_metadata["decision"]["model"] == "light"


async def test_a_failure_of_the_fallback_is_none_of_the_call(pool: EnginePool, run: Any) -> None:
    """A retry of both is routed as the first try was."""
    retry = middleware.ModelRetryMiddleware(max_retries=1, initial_delay=0.0, jitter=False)
    fallback = middleware.ModelFallbackMiddleware(Broken())
    agent = agents.create_agent(own(pool), middleware=[retry, fallback, trinity({"light": Once(calls=[])})])
    found = await run(agent, [HumanMessage(EASY)])
    assert found[-1].text == "at last"


async def test_a_failure_keeps_no_conversation(pool: EnginePool, run: Any) -> None:
    trinities = trinity({name: Broken() for name in ("light", "best", "strong")})
    agent = agents.create_agent(own(pool), middleware=[trinities])
    said = HumanMessage(EASY)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await run(agent, [said])
    kept = weakref.ref(said)
    del said
    gc.collect()
    assert kept() is None


async def test_what_an_answer_followed_is_forgotten(pool: EnginePool, run: Any) -> None:
    trinities = trinity({"light": Broken()})
    agent = agents.create_agent(own(pool), middleware=[middleware.ModelFallbackMiddleware(backup()), trinities])
    await run(agent, [HumanMessage(EASY)])
    assert not trinities._failed


async def test_failures_are_not_remembered_without_end(pool: EnginePool, run: Any) -> None:
    trinities = trinity({"light": Broken()})
    agent = agents.create_agent(own(pool), middleware=[trinities])
    for _ in range(70):
        with pytest.raises(ConnectionError):
            await run(agent, [HumanMessage(EASY)])
    assert len(trinities._failed) == 64
