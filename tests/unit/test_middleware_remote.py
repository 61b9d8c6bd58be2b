"""Settings of agents and runs in chat models of others, which TrinityMiddleware chooses or falls back to."""

import json
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import Field

from chancellor import ChatVLLM, Context, TrinityMiddleware
from chancellor.engines import EnginePool
from tests.fakes import FakeEngine, catalog

agents = pytest.importorskip("langchain.agents")
middleware = pytest.importorskip("langchain.agents.middleware")

HARD = [HumanMessage("Please explain to me in detail how the tides of the sea work")]
EVERYTHING: dict[str, Any] = {
    "temperature": 0.0, "max_tokens": 96, "seed": 5, "stop": ["END"], "top_p": 0.5, "top_k": 3, "min_p": 0.1,
    "presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.1, "timeout": 60.0,
    "logprobs": False, "top_logprobs": 2,
}  # fmt: skip
"""What an agent's own model may be told."""
PASSED_ON: dict[str, Any] = {"temperature": 0.0, "max_completion_tokens": 96, "seed": 5, "stop": ["END"], "top_p": 0.5}


def own(fake_engine: type[FakeEngine], **settings: Any) -> ChatVLLM:
    return ChatVLLM(model="light", catalog=catalog(), pool=EnginePool(fake_engine), **settings)


def trinity(strong: BaseChatModel) -> TrinityMiddleware:
    return TrinityMiddleware(catalog(), models={"strong": strong})


def openai(sent: list[dict[str, Any]], **settings: Any) -> ChatOpenAI:
    """Return a chat model of langchain-openai's, and what it sends."""

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append({**json.loads(request.content), "timeout": request.extensions["timeout"]["read"]})
        choice = {"index": 0, "message": {"role": "assistant", "content": "far"}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return httpx.Response(500 if "input" in sent[-1] else 200, json=body)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    return ChatOpenAI(model="m", api_key="x", base_url="http://far/v1", max_retries=0, http_client=client, **settings)


def told(sent: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in sent.items() if name not in ("model", "messages", "input", "stream", "timeout")}


def test_they_get_what_they_know(fake_engine: type[FakeEngine]) -> None:
    sent: list[dict[str, Any]] = []
    model = own(fake_engine, **EVERYTHING)
    agent = agents.create_agent(model, middleware=[trinity(openai(sent))], context_schema=Context)
    agent.invoke({"messages": HARD})
    assert told(sent[-1]) == PASSED_ON
    assert sent[-1]["timeout"] is None
    agent.invoke({"messages": HARD}, context=Context(temperature=0.3, seed=None))
    assert told(sent[-1]) == {**{key: one for key, one in PASSED_ON.items() if key != "seed"}, "temperature": 0.3}


def test_the_responses_api_knows_no_seed(fake_engine: type[FakeEngine]) -> None:
    sent: list[dict[str, Any]] = []
    agent = agents.create_agent(
        own(fake_engine, **EVERYTHING),
        middleware=[trinity(openai(sent, use_responses_api=True))],
        context_schema=Context,
    )
    for context in (None, Context(seed=3)):
        with pytest.raises(Exception, match="500"):
            agent.invoke({"messages": HARD}, context=context)
        assert told(sent[-1]) == {"temperature": 0.0, "max_output_tokens": 96, "top_p": 0.5}


@pytest.mark.parametrize(
    ("theirs", "kept"),
    [
        ({"temperature": 0.2}, {"temperature": 0.2}),
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ({"stop_sequences": ["B"]}, {"stop": ["B"]}),
        ({"timeout": 5}, {"timeout": 5}),
    ],
    ids=str,
)
def test_what_they_were_told_themselves_holds(
    fake_engine: type[FakeEngine], theirs: dict[str, Any], kept: dict[str, Any]
) -> None:
    sent: list[dict[str, Any]] = []
    model = openai(sent, **theirs)
    before = model.model_dump()
    agent = agents.create_agent(own(fake_engine, **EVERYTHING), middleware=[trinity(model)], context_schema=Context)
    agent.invoke({"messages": HARD})
    assert {**PASSED_ON, **kept}.items() <= sent[-1].items()
    agent.invoke({"messages": HARD}, context=Context(max_tokens=7))
    assert sent[-1]["max_completion_tokens"] == 7  # the run comes before both
    assert model.model_dump() == before  # they were in a copy


class Named(FakeListChatModel):
    """Another provider's names: a field is called otherwise than what it takes."""

    responses: list[str] = Field(default=["near"])
    max_output_tokens: int | None = Field(default=None, alias="max_tokens")
    model_kwargs: dict[str, Any] = Field(default={})
    asked: list[Any] = Field(default=[])

    def _call(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> str:
        self.asked.append((self.max_output_tokens, self.model_kwargs, kwargs))
        return super()._call(messages, stop, run_manager, **kwargs)


@pytest.mark.parametrize("extra", [{"max_tokens": 4, "x": 1}, {"max_output_tokens": 4, "x": 1}], ids=str)
def test_fields_are_found_by_their_aliases(fake_engine: type[FakeEngine], extra: dict[str, Any]) -> None:
    def asked(model: Named, context: Context | None = None) -> Any:
        agent = agents.create_agent(own(fake_engine, **EVERYTHING), middleware=[trinity(model)], context_schema=Context)
        agent.invoke({"messages": HARD}, context=context)
        return model.asked.pop()

    assert asked(Named(asked=[])) == (96, {}, {})
    assert asked(Named(asked=[], max_tokens=4)) == (4, {}, {})
    assert asked(Named(asked=[], model_kwargs=extra)) == (None, extra, {})
    assert asked(Named(asked=[], model_kwargs=extra), Context(max_tokens=7)) == (7, {"x": 1}, {})


class Dead(ChatVLLM):
    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("The model is not there.")


def test_fallbacks_inside_keep_settings_of_their_own(fake_engine: type[FakeEngine]) -> None:
    sent: list[dict[str, Any]] = []
    dead = Dead(model="strong", catalog=catalog())
    fallback = middleware.ModelFallbackMiddleware(openai(sent, temperature=0.4))
    agent = agents.create_agent(
        own(fake_engine, **EVERYTHING), middleware=[trinity(dead), fallback], context_schema=Context
    )
    found = agent.invoke({"messages": HARD}, context=Context(seed=3))["messages"]
    assert found[-1].text == "far"
    assert told(sent[-1]) == {"temperature": 0.4}
