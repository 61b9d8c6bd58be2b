"""TrinityMiddleware among what LangChain's agents have besides: settings, summaries, reminders."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from chancellor import ChatModels, ChatVLLM, Context, TrinityMiddleware
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog

agents = pytest.importorskip("langchain.agents")
middleware = pytest.importorskip("langchain.agents.middleware")
structured = pytest.importorskip("langchain.agents.structured_output")

EASY = "What is 2+2?"
HARD = "Please explain to me in detail how the tides of the sea work"
CALL = 'call add {"a": 1, "b": 2}'
Run = Callable[..., list[AnyMessage]]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> EnginePool:
    return EnginePool(fake_engine)


@pytest.fixture
def models(pool: EnginePool) -> ChatModels:
    return ChatModels(catalog(), pool=pool)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    async def ask(agent: Any, messages: Any, context: Any = None) -> list[AnyMessage]:
        state = {"messages": messages}
        done = agent.invoke(state, context=context) if sync else await agent.ainvoke(state, context=context)
        return list(done["messages"])

    sync = request.param == "sync"
    return ask


def trinity(models: Any) -> TrinityMiddleware:
    return TrinityMiddleware(catalog(), models=models)


def own(pool: EnginePool, **settings: Any) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=pool, **settings)


def asked() -> tuple[float, int, int | None]:
    request = FakeEngine.requests[-1]
    return request.temperature, request.max_tokens, request.seed


async def test_the_agents_own_settings_hold(pool: EnginePool, models: ChatModels, run: Any) -> None:
    model = own(pool, temperature=0.0, max_tokens=96, seed=5, top_p=0.5, stop=["END"])
    await run(agents.create_agent(model, middleware=[trinity(models)]), [HumanMessage(HARD)])
    assert asked() == (0.0, 96, 5)
    assert (FakeEngine.requests[-1].top_p, FakeEngine.requests[-1].stop) == (0.5, ("END",))
    await run(agents.create_agent(own(pool), middleware=[trinity(models)]), [HumanMessage(HARD)])
    assert asked() == (0.7, 512, None)


async def test_they_hold_with_tools(pool: EnginePool, models: ChatModels, run: Any) -> None:
    agent = agents.create_agent(own(pool, temperature=0.0), tools=[add], middleware=[trinity(models)])
    await run(agent, [HumanMessage(CALL)])
    assert [request.temperature for request in FakeEngine.requests] == [0.0, 0.0]


async def test_the_runs_context_comes_before_them(pool: EnginePool, models: ChatModels, run: Any) -> None:
    model = own(pool, temperature=0.0, max_tokens=96, seed=5)
    agent = agents.create_agent(model, middleware=[trinity(models)], context_schema=Context)
    await run(agent, [HumanMessage(HARD)], Context(temperature=0.3, max_tokens=7))
    assert asked() == (0.3, 7, 5)
    await run(agent, [HumanMessage(HARD)], {"seed": None, "temperature": 0.7})
    assert asked() == (0.7, 96, None)  # they were given, though they are the defaults


async def test_settings_of_the_request_come_first(pool: EnginePool, models: ChatModels) -> None:
    def sync(request: Any, handler: Any) -> Any:
        return handler(request.override(model_settings={"temperature": 0.9}))

    async def asynchronous(request: Any, handler: Any) -> Any:
        return await handler(request.override(model_settings={"temperature": 0.9}))

    for outer, call in ((sync, "invoke"), (asynchronous, "ainvoke")):
        agent = agents.create_agent(
            own(pool, temperature=0.0, max_tokens=96),
            middleware=[middleware.wrap_model_call(outer), trinity(models)],
            context_schema=Context,
        )
        made = getattr(agent, call)({"messages": [HumanMessage(HARD)]}, context=Context(temperature=0.3))
        _ = made if call == "invoke" else await made
        assert asked() == (0.9, 96, None)


async def test_a_model_that_has_settings_keeps_them(pool: EnginePool, run: Any) -> None:
    theirs = {"strong": ChatVLLM(model="strong", catalog=catalog(), pool=pool, temperature=0.2)}
    agent = agents.create_agent(own(pool, temperature=0.0, max_tokens=96), middleware=[trinity(theirs)])
    await run(agent, [HumanMessage(HARD)])
    assert asked() == (0.2, 96, None)


def test_the_longest_answer_counts(pool: EnginePool, models: ChatModels) -> None:
    """One of 100 tokens leaves more room than one of 512."""
    from chancellor import Catalog, EngineOptions, ModelSpec

    small = EngineOptions(max_model_len=1024)
    specs = [
        ModelSpec(name="light", source="fake/a", trinity=99, parameters=9, engine=small),
        ModelSpec(name="strong", source="fake/b", trinity=96, parameters=1),
    ]
    routed = TrinityMiddleware(Catalog(specs), models=models)
    for most, model in ((100, "light"), (500, "strong")):
        agent = agents.create_agent(own(pool, max_tokens=most), middleware=[routed])
        answer = agent.invoke({"messages": [HumanMessage("word " * 700)]})["messages"][-1]
        assert answer.response_metadata["decision"]["model"] == model


@pytest.mark.parametrize(("kept", "model"), [(3, "light"), (2, "best")])
async def test_a_summary_is_no_text_of_the_users(
    pool: EnginePool, models: ChatModels, run: Any, kept: int, model: str
) -> None:
    """A go-ahead is judged by the question that is still there, and as medium where it has gone into the summary."""
    summary = "explain " * 60
    summarizing = middleware.SummarizationMiddleware(
        FakeListChatModel(responses=[summary]), trigger=("messages", 4), keep=("messages", kept)
    )
    agent = agents.create_agent(own(pool), middleware=[summarizing, trinity(models)])
    before = [HumanMessage("Tell me a joke"), AIMessage("No."), HumanMessage(EASY), AIMessage("Shall I?")]
    found = await run(agent, [*before, HumanMessage("yes, go on")])
    assert found[0].additional_kwargs == {"lc_source": "summarization"}
    assert summary.strip() in found[0].text
    assert len(found) == kept + 2
    assert found[-1].response_metadata["decision"]["model"] == model


async def test_nothing_but_a_summary_is_of_medium_complexity(pool: EnginePool, models: ChatModels, run: Any) -> None:
    agent = agents.create_agent(own(pool), middleware=[trinity(models)])
    summary = HumanMessage("So far: ...", additional_kwargs={"lc_source": "summarization"})
    found = await run(agent, [summary])
    assert found[-1].response_metadata["decision"]["model"] == "best"
    assert found[-1].response_metadata["decision"]["complexity"]["level"] == "medium"


@pytest.mark.parametrize(
    "reminder",
    [HumanMessage("Remember to be brief.", additional_kwargs={"lc_source": "reminders"}), SystemMessage("Be brief.")],
)
async def test_reminders_do_not_end_a_tool_loop(
    pool: EnginePool, models: ChatModels, run: Any, reminder: AnyMessage
) -> None:
    class Reminding(middleware.AgentMiddleware):  # type: ignore[name-defined,misc]
        def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
            return {"messages": [reminder]} if isinstance(state["messages"][-1], ToolMessage) else None

    call = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "1"}])
    call.response_metadata["model_name"] = "strong"
    agent = agents.create_agent(own(pool), tools=[add], middleware=[Reminding(), trinity(models)])
    found = await run(agent, [HumanMessage(HARD), call, ToolMessage("3", tool_call_id="1")])
    assert [message.type for message in found] == ["human", "ai", "tool", reminder.type, "ai"]
    decision = found[-1].response_metadata["decision"]
    assert (decision["model"], decision["policy"]) == ("strong", "held")
    found = await run(agent, [*found, HumanMessage(EASY)])  # it has answered
    assert found[-1].response_metadata["decision"]["model"] == "light"


@tool(return_direct=True)
def look(a: int) -> int:
    """Look at a number."""
    return a


class Number(BaseModel):
    """A number."""

    a: int


async def test_a_turn_that_ends_on_a_tools_result_is_over(pool: EnginePool, models: ChatModels, run: Any) -> None:
    direct = agents.create_agent(own(pool), tools=[look], middleware=[trinity(models)])
    formed = agents.create_agent(
        own(pool), response_format=structured.ToolStrategy(Number), middleware=[trinity(models)]
    )
    for agent, question in ((direct, 'call look {"a": 1}'), (formed, 'call Number {"a": 1}')):
        found = await run(agent, [HumanMessage(question)])
        assert [message.type for message in found] == ["human", "ai", "tool"]
        assert found[1].response_metadata["decision"]["model"] == "light"
        found = await run(direct, [*found, HumanMessage(HARD)])
        assert found[-1].response_metadata["decision"]["model"] == "strong"
