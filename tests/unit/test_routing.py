"""Which model answers a conversation: agents' loops, follow-ups, context windows."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from chancellor import (
    Catalog,
    ChatModels,
    Context,
    EngineOptions,
    ModelSpec,
    TrinityMiddleware,
    create_chancellor,
    errors,
)
from chancellor.analyzers import rules
from chancellor.engines import EnginePool
from chancellor.nodes import generation_node, selection_node
from chancellor.routing import Router, task_of
from tests.fakes import FakeEngine, catalog

langchain_agents = pytest.importorskip("langchain.agents")
HARD = "Please explain to me in detail how the tides of the sea work"
EASY = "What is 2+2?"
CALL = AIMessage(
    "", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1"}], response_metadata={"model_name": "best"}
)
RESULT = ToolMessage("3", tool_call_id="1")


@pytest.fixture
def models(fake_engine: type[FakeEngine]) -> ChatModels:
    return ChatModels(catalog(), pool=EnginePool(fake_engine))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "yes",
            "Yes, go on",
            "ok do it please",
            "Go ahead with option 2.",
            "sure!",
            "continue",
            "Sounds good, thanks",
        ),
        *("y", "Yup", "Option 2, please", "OK, let\u2019s do that", "Great, now do it", "Keep going", "that's right"),
    ],
)
def test_an_approval_is_judged_by_what_it_approves(text: str) -> None:
    assert task_of([HumanMessage(HARD), AIMessage("Shall I?"), HumanMessage(text)]) == HARD
    assert (
        task_of([HumanMessage(HARD), AIMessage("x"), HumanMessage("yes"), AIMessage("y"), HumanMessage(text)]) == HARD
    )
    assert task_of([HumanMessage(text)]) == text  # there is nothing that it could approve


@pytest.mark.parametrize(
    "text",
    [
        *(EASY, "Sure, what is 2+2?", "Explain it", "No", "Okay: " + HARD, "Thank you", "2", "yes " * 9),
        *("Please design a distributed rate limiter", "Great, now tell me a joke", "Thanks! Now compare TCP and QUIC"),
        *(
            "Correct my grammar",
            "Continue the story with a dragon",
            "Go to Rome",
            "Do the dishes",
            "Yes and no",
            "OK \u8bf4",
        ),
    ],
)
def test_a_new_task_is_judged_by_itself(text: str) -> None:
    assert task_of([HumanMessage(HARD), AIMessage("done"), HumanMessage(text)]) == text


def test_a_conversation_in_any_form() -> None:
    assert task_of(HARD) == task_of(("user", HARD)) == task_of({"role": "user", "content": HARD}) == HARD
    assert task_of([("user", HARD), {"role": "assistant", "content": "Shall I?"}, "yes"]) == HARD
    assert task_of((HumanMessage(HARD), AIMessage("Shall I?"))) == HARD
    asked = Router(catalog()).decide([("user", EASY)], rules(EASY), Context())
    assert asked["model"] == "light"
    for wrong in ([7], [{"text": "hi"}], 7, [("user",)], [("nobody", "hi")]):
        with pytest.raises(errors.InvalidInputError, match="are no messages"):
            task_of(wrong)  # type: ignore[arg-type]


def test_system_prompts_and_answers_do_not_count(models: ChatModels) -> None:
    graph = create_chancellor(catalog(), generate=generation_node(models)).compile()
    messages = [SystemMessage(HARD), HumanMessage(HARD), AIMessage(HARD), HumanMessage(EASY)]
    assert graph.invoke({"messages": messages}, context={"system_prompt": HARD})["decision"]["model"] == "light"


def decide(messages: list[BaseMessage], before: dict[str, Any] | None = None, **context: Any) -> str:
    router = Router(catalog())
    return router.decide(messages, rules(task_of(messages)), Context(**context), before)["model"]


def test_a_model_that_has_called_tools_goes_on() -> None:
    loop = [HumanMessage(HARD), CALL, RESULT]
    assert decide(loop[:1]) == "strong"
    assert decide(loop) == "best"  # as its call says
    assert decide(loop, before={"model": "light"}) == "best"  # a substitute has called, whatever was decided
    foreign = CALL.model_copy(update={"response_metadata": {"model_name": "gpt"}})
    assert decide([loop[0], foreign, RESULT], before={"model": "light"}) == "light"  # as the state says
    assert decide(loop, model="strong") == "strong"  # as the user says
    assert decide([*loop, AIMessage("3"), HumanMessage(EASY)]) == "light"  # the loop is over


@pytest.mark.parametrize(
    "reminder", [HumanMessage("Be brief.", additional_kwargs={"lc_source": "x"}), SystemMessage("Be brief.")]
)
def test_what_follows_a_result_does_not_end_the_loop(reminder: BaseMessage) -> None:
    loop = [HumanMessage(HARD), CALL, RESULT, reminder]
    assert decide(loop) == decide([*loop, reminder]) == "best"
    assert decide([HumanMessage(EASY), CALL, reminder]) == "light"  # nothing has come of the call
    assert decide([*loop, AIMessage("3"), HumanMessage(EASY)]) == "light"  # a new question
    assert decide([*loop, AIMessage("3"), RESULT, HumanMessage(EASY)]) == "light"


def test_a_question_after_a_result_ends_the_loop() -> None:
    """Its turn has ended without an answer: the tool returned directly, say, or the run has died."""
    loop = [HumanMessage(EASY), CALL, RESULT]
    assert decide([*loop, HumanMessage(HARD)]) == "strong"
    assert decide([*loop, HumanMessage(HARD), SystemMessage("Be brief.")]) == "strong"
    assert decide([*loop, HumanMessage(HARD), CALL, RESULT]) == "best"  # and the next begins


def test_images_are_judged_by_the_last_text() -> None:
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])
    assert task_of([HumanMessage(HARD), AIMessage("Show me"), image]) == HARD
    assert task_of([HumanMessage(HARD), AIMessage("Shall I?"), HumanMessage("yes"), image]) == HARD
    assert task_of([image]) == ""
    assert selection_node(catalog())({"messages": [image]})["decision"]["model"] == "best"
    graph = create_chancellor(catalog(), generate=lambda _: {"messages": ["I see"]}).compile()
    state = graph.invoke({"messages": [image]})
    assert (state["complexity"]["level"], state["decision"]["model"]) == ("medium", "best")
    state = graph.invoke({"messages": [HumanMessage(HARD), image]})
    assert state["decision"]["model"] == "strong"


def test_a_summary_is_no_text_of_the_users() -> None:
    summary = HumanMessage(f"Here is a summary: {HARD}", additional_kwargs={"lc_source": "summarization"})
    assert task_of([summary, HumanMessage(EASY), AIMessage("Shall I?"), HumanMessage("yes, go on")]) == EASY
    assert task_of([summary, HumanMessage("yes, go on")]) == ""  # what it approves is in the summary
    assert task_of([summary, AIMessage("x")]) == ""


def test_a_model_that_is_gone_is_not_held() -> None:
    gone = CALL.model_copy(update={"response_metadata": {"model_name": "gpt"}})
    assert decide([HumanMessage(HARD), gone, RESULT]) == "strong"


def test_a_conversation_that_is_too_long_rules_models_out() -> None:
    small = EngineOptions(max_model_len=64)
    models = [
        ModelSpec(name="small", source="fake/a", trinity=99, parameters=9, engine=small),
        ModelSpec(name="large", source="fake/b", trinity=96, parameters=1),
    ]
    router = Router(Catalog(models))
    long: list[BaseMessage] = [HumanMessage("word " * 200)]
    decision = router.decide(long, rules("x"), Context())
    assert decision["model"] == "large"
    assert "too much for its context of 64" in decision["candidates"][0]["reason"]
    assert router.decide([HumanMessage("hi")], rules("word " * 60), Context())["model"] == "small"
    with pytest.raises(errors.PromptTooLongError, match="too long for every model"):
        Router(Catalog(models[:1])).decide(long, rules("x"), Context())


def test_a_single_node_in_somebody_elses_graph(models: ChatModels) -> None:
    state = {"messages": [HumanMessage(HARD)]}
    assert selection_node(catalog())(state)["decision"]["model"] == "strong"
    with pytest.raises(errors.InvalidInputError, match="no decision"):
        generation_node(models)(state)
    alone = generation_node({"light": models["light"]})(state)
    assert alone["messages"][0].text == f"light says: {HARD}"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_agent_with_the_middleware(models: ChatModels, *, asynchronous: bool) -> None:
    middleware = TrinityMiddleware(catalog(), models=models)
    agent = langchain_agents.create_agent(model=models["light"], tools=[add], middleware=[middleware])
    state = {"messages": [HumanMessage('call add {"a": 1, "b": 2}')]}
    found = (await agent.ainvoke(state) if asynchronous else agent.invoke(state))["messages"]
    assert [message.type for message in found] == ["human", "ai", "tool", "ai"]
    assert found[2].content == "3"
    decisions = [message.response_metadata["decision"] for message in found if message.type == "ai"]
    assert [one["model"] for one in decisions] == ["light", "light"]
    assert [one["policy"] for one in decisions] == ["trinity", "held"]
    state = {"messages": [*found, HumanMessage(HARD)]}
    answer = (await agent.ainvoke(state) if asynchronous else agent.invoke(state))["messages"][-1]
    assert answer.text == f"strong says: {HARD}"


def test_middleware_errors(models: ChatModels) -> None:
    with pytest.raises(errors.UnknownChoiceError, match="analyzer"):
        TrinityMiddleware(catalog(), analyzer="oracle")
    agent = langchain_agents.create_agent(
        model=models["light"], middleware=[TrinityMiddleware(catalog(), models={"best": models["best"]})]
    )
    with pytest.raises(errors.UnknownModelError, match="no chat model"):
        agent.invoke({"messages": [HumanMessage(EASY)]})
