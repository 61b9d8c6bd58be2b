"""Which model answers: what the endpoint says of it is what the graph itself decides."""

import asyncio
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from chancellor import Catalog, ChatModels, ModelSpec, create_chancellor
from chancellor.engines import EnginePool
from chancellor.errors import CatalogFileError, EngineStartError
from chancellor.nodes import complexity_node, generation_node
from chancellor.server import ServeOptions, create_app
from tests.fakes import FakeEngine, catalog
from tests.serving import QUESTION, Scripted, app_of, client_of, events

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
HARD = "Design a distributed cache, and explain every decision that you take: " + "with its costs and gains " * 12
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": HARD},
    {"role": "assistant", "content": "Shall I?"},
    {"role": "user", "content": "yes, go on"},
]


def known(decision: dict[str, Any]) -> dict[str, Any]:
    """Leave out how long starts take, which differs from moment to moment."""
    told = [{key: value for key, value in one.items() if key != "start_s"} for one in decision["candidates"]]
    return {**decision, "candidates": told}


@pytest.mark.parametrize("policy", [None, "trinity", "light", "strong"])
@pytest.mark.parametrize(
    "messages",
    [
        QUESTION,
        [{"role": "user", "content": "Tell me something of the sea and of the ships that go to the islands"}],
        [{"role": "user", "content": HARD}],
        CONVERSATION,
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_choice_is_the_graphs(
    client: httpx.AsyncClient, serving_pool: EnginePool, messages: list[Any], policy: str | None, stream: bool
) -> None:
    models = catalog()
    graph = create_chancellor(models, generate=generation_node(ChatModels(models, pool=serving_pool))).compile()
    state = await graph.ainvoke({"messages": messages}, context={} if policy is None else {"policy": policy})
    asked = {"decision": True} if policy is None else {"decision": True, "policy": policy}
    body = {"model": "chancellor", "messages": messages, "stream": stream, "chancellor": asked}
    answer = await client.post(CHAT, json=body)
    told = events(answer.text)[-2]["chancellor"] if stream else answer.json()["chancellor"]
    assert told["complexity"] == state["complexity"]
    assert known(told["decision"]) == known(state["decision"])
    decision, headers = state["decision"], answer.headers
    assert headers["x-chancellor-model"] == decision["model"]
    assert float(headers["x-chancellor-trinity-score"]) == decision["trinity_score"]
    assert headers["x-chancellor-complexity"] == state["complexity"]["level"]
    assert headers["x-chancellor-policy"] == decision["policy"]
    assert unquote(headers["x-chancellor-reason"]) == decision["reason"]


async def test_a_raw_prompt_is_judged_as_a_question(client: httpx.AsyncClient) -> None:
    answer = await client.post(RAW, json={"model": "chancellor", "prompt": HARD, "max_tokens": 5})
    assert answer.headers["x-chancellor-model"] == "strong"
    assert answer.headers["x-chancellor-complexity"] == "high"
    assert answer.json()["model"] == "strong"


async def test_a_named_model_is_not_chosen(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"model": "best", "messages": QUESTION})
    told = {name: value for name, value in answer.headers.items() if name.startswith("x-chancellor")}
    assert told == {"x-chancellor-model": "best", "x-chancellor-trinity-score": "99"}


@pytest.mark.parametrize(("name", "word"), [("gpt-4o", "gpt-4o"), ("poor", "below the minimum"), ("a\r\nb: c", "b")])
async def test_models_that_cannot_be_asked(client: httpx.AsyncClient, name: str, word: str) -> None:
    answer = await client.post(CHAT, json={"model": name, "messages": QUESTION})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert word in error["message"]
    assert FakeEngine.requests == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"messages": [{"role": "user", "content": "   "}]}, "empty"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "no human message"),
        ({"messages": QUESTION, "chancellor": {"policy": "best"}}, "trinity, light, strong"),
    ],
)
async def test_what_nothing_can_be_chosen_for(client: httpx.AsyncClient, body: dict[str, Any], word: str) -> None:
    answer = await client.post(CHAT, json={"model": "chancellor", **body})
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]


async def test_no_model_may_be_chosen(serving_pool: EnginePool) -> None:
    app = create_app(
        Catalog([catalog()["poor"]]),
        ServeOptions(preload=("none",)),
        pool=serving_pool,
    )
    async with client_of(app) as client:
        answer = await client.post(CHAT, json={"model": "chancellor", "messages": QUESTION})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_model")
        listed = (await client.get("/v1/models")).json()["data"]
        assert [one["id"] for one in listed] == ["chancellor"]


async def test_nodes_of_ones_own(serving_pool: EnginePool) -> None:
    def select(_: Any) -> dict[str, Any]:
        reason = "grün\r\nx-evil: 1 😀"
        return {
            "decision": {"model": "best", "trinity_score": 99.0, "policy": "ö\r\n", "reason": reason, "candidates": []}
        }

    analyze = complexity_node(lambda _: {"level": "high", "probability": 0.9, "reasons": [], "analyzer": "mine"})
    async with client_of(app_of(serving_pool, analyze=analyze, select=select)) as client:
        answer = await client.post(CHAT, json={"model": "chancellor", "messages": QUESTION})
    assert answer.headers["x-chancellor-model"] == "best"
    assert answer.headers["x-chancellor-complexity"] == "high"
    assert "x-evil" not in answer.headers
    assert unquote(answer.headers["x-chancellor-reason"]) == "grün\r\nx-evil: 1 😀"
    assert unquote(answer.headers["x-chancellor-policy"]) == "ö\r\n"


@pytest.mark.parametrize("level", ["hoch\r\nx-evil: 1", "трудно", 3])
async def test_a_level_of_ones_own_is_no_header_of_its_own(serving_pool: EnginePool, level: Any) -> None:
    def analyze(_: Any) -> dict[str, Any]:
        return {"complexity": {"level": level, "probability": 0.9, "reasons": [], "analyzer": "mine"}}

    def select(_: Any) -> dict[str, Any]:
        made = {"model": "best", "trinity_score": 99.0, "policy": "mine", "reason": "mine", "candidates": []}
        return {"decision": made}

    async with client_of(app_of(serving_pool, analyze=analyze, select=select)) as client:
        answer = await client.post(CHAT, json={"model": "chancellor", "messages": QUESTION})
    assert answer.status_code == 200, answer.text
    assert unquote(answer.headers["x-chancellor-complexity"]) == str(level)
    assert answer.headers["x-chancellor-complexity"].isascii()
    assert "\n" not in answer.headers["x-chancellor-complexity"]
    assert "x-evil" not in answer.headers


async def test_who_names_no_model_that_there_is_hears_of_the_one_that_chooses(client: httpx.AsyncClient) -> None:
    message = (await client.post(CHAT, json={"model": "gpt-4o", "messages": QUESTION})).json()["error"]["message"]
    assert "'chancellor'" in message
    assert "light" in message


class OnlyBest(Scripted):
    """Of all models only one can be started."""

    async def start(self) -> None:
        if self.spec.name != "best":
            raise EngineStartError("It does not start.")
        await super().start()


async def test_another_model_that_had_to_answer_is_named_with_its_own_score() -> None:
    FakeEngine.reset()
    pool = EnginePool(OnlyBest)
    try:
        async with client_of(app_of(pool)) as client:
            body = {"model": "chancellor", "messages": QUESTION, "chancellor": {"decision": True}}
            answer = await client.post(CHAT, json=body)
            named = await client.post(CHAT, json={"model": "light", "messages": QUESTION})
    finally:
        pool.close()
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == answer.headers["x-chancellor-model"] == "best"
    assert answer.headers["x-chancellor-trinity-score"] == "99"
    assert answer.json()["chancellor"]["decision"]["model"] == "light"
    assert answer.json()["chancellor"]["metrics"]["fallbacks"][-1]["step"] == "other_model"
    assert named.status_code == 503  # who names a model gets that one or none
    assert named.json()["error"]["code"] == "engine_unavailable"


class LateBest(OnlyBest):
    """It takes longer than a ping until that is known."""

    async def start(self) -> None:
        await asyncio.sleep(0.3)
        await super().start()


async def test_after_a_ping_the_chunks_say_who_answers_and_the_headers_who_was_chosen() -> None:
    FakeEngine.reset()
    pool = EnginePool(LateBest)
    try:
        async with client_of(app_of(pool, ping_s=0.05)) as client:
            body = {"model": "chancellor", "messages": QUESTION, "stream": True, "chancellor": {"decision": True}}
            answer = await client.post(CHAT, json=body)
    finally:
        pool.close()
    assert answer.text.startswith(": ping\n\n")
    chunks = events(answer.text)[:-1]
    assert {chunk["model"] for chunk in chunks} == {"best"}
    assert answer.headers["x-chancellor-model"] == "light"  # it was sent before anybody knew
    assert chunks[-1]["chancellor"]["metrics"]["fallbacks"][-1]["step"] == "other_model"


async def test_the_list_of_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["chancellor", "light", "best", "strong"]
    assert {one["object"] for one in listed["data"]} == {"model"}
    light = listed["data"][1]
    assert light["chancellor"]["trinity_score"] == 96.0
    assert light["chancellor"]["scheme"] == "int8"
    assert light["chancellor"]["state"] == "stopped"
    await client.post(CHAT, json={"model": "light", "messages": QUESTION})
    alone = (await client.get("/v1/models/light")).json()
    assert alone["chancellor"]["state"] == "ready"
    assert (await client.get("/v1/models/chancellor")).json() == listed["data"][0]
    for name in ("poor", "nobody", ""):
        missing = await client.get(f"/v1/models/{name}")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_names_with_slashes_and_letters_of_all_kinds(serving_pool: EnginePool) -> None:
    name = "org/modèle 1"
    spec = ModelSpec(name=name, source="fake/light", trinity=96.0, parameters=1_000)
    app = create_app(Catalog([spec]), ServeOptions(preload=("none",)), pool=serving_pool)
    async with client_of(app) as client:
        assert (await client.get("/v1/models/org/mod%C3%A8le%201")).json()["id"] == name
        answer = await client.post(CHAT, json={"model": name, "messages": QUESTION})
        assert unquote(answer.headers["x-chancellor-model"]) == name


def test_no_model_may_have_the_virtual_ones_name(serving_pool: EnginePool) -> None:
    spec = ModelSpec(name="chancellor", source="fake/light", trinity=96.0, parameters=1_000)
    with pytest.raises(CatalogFileError, match="another name"):
        create_app(Catalog([spec]), ServeOptions(preload=("none",)), pool=serving_pool)


@pytest.mark.parametrize("what", ["tools", "max_tokens"])
async def test_what_has_to_fit_with_the_conversation_is_counted(serving_pool: EnginePool, what: str) -> None:
    models = [
        ModelSpec(name=name, source=f"fake/{name}", trinity=96, parameters=size, engine={"max_model_len": length})
        for name, size, length in (("short", 1_000, 600), ("long", 3_000, 20_000))
    ]
    tool = {"type": "function", "function": {"name": "add", "description": "adds " * 600}}
    more = {"tools": [tool]} if what == "tools" else {"max_tokens": 100}
    text = "hello there" if what == "tools" else "hello " * 360
    app = create_app(Catalog(models), ServeOptions(preload=("none",)), pool=serving_pool)
    async with client_of(app) as client:
        body = {
            "model": "chancellor",
            "messages": [{"role": "user", "content": text}],
            "chancellor": {"policy": "light"},
        }
        usual = await client.post(CHAT, json=body | {"max_tokens": 1})
        answer = await client.post(CHAT, json=body | {"max_tokens": 1} | more)
    assert usual.headers["x-chancellor-model"] == "short"
    assert answer.headers["x-chancellor-model"] == "long"
