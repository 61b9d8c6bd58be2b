"""Which models a conversation fits into, with all that is told to them, and an answer."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
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
from chancellor.nodes import generation_node
from chancellor.routing import Router
from chancellor.window import Window, window_of
from tests.fakes import FakeEngine
from tests.tiny import write_safetensors

agents = pytest.importorskip("langchain.agents")
EASY = "What is 2+2?"


def checkpoint(folder: Path, **config: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    write_safetensors(folder / "model.safetensors", {"weight": [2, 2]})
    return str(folder)


def spec(source: str, name: str = "x", trinity: float = 99, **options: Any) -> ModelSpec:
    return ModelSpec(name=name, source=source, trinity=trinity, parameters=9, engine=EngineOptions(**options))


@pytest.mark.parametrize(
    ("config", "options", "window"),
    [
        ({"max_position_embeddings": 2048}, {}, 2048),
        ({"max_position_embeddings": 2048}, {"kind": "transformers"}, 2048),
        ({"max_position_embeddings": 2048}, {"max_model_len": 1000}, 1000),
        ({"max_position_embeddings": 8192}, {}, 4096),
        ({"max_position_embeddings": 2048}, {"vllm": {"max_model_len": 3000}}, 3000),
        ({"max_position_embeddings": 2048}, {"vllm": {"hf_overrides": {"max_position_embeddings": 3000}}}, 3000),
        ({"text_config": {"max_position_embeddings": 2048}}, {}, 2048),
        ({"n_positions": 1024}, {}, 1024),
        ({}, {}, 4096),
    ],
)
def test_a_window_is_no_longer_than_its_checkpoint_says(
    tmp_path: Path, config: dict[str, Any], options: dict[str, Any], window: int
) -> None:
    assert window_of(spec(checkpoint(tmp_path / "model", **config), **options)) == Window(window, certain=True)


def test_windows_of_what_is_not_here(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    assert window_of(spec("m", kind="openai", base_url=url)) == Window(None, certain=True)
    assert window_of(spec("m", kind="openai", base_url=url, max_model_len=99)) == Window(99, certain=True)
    assert window_of(spec("nobody/nothing")) == Window(4096, certain=False)
    assert window_of(spec(str(tmp_path))) == Window(4096, certain=False)  # broken, as its start will say
    assert window_of(spec("shape:llama-3.1-8b")) == Window(4096, certain=True)
    assert window_of(spec("shape:llama-3.1-8b", max_model_len=10**6)) == Window(131_072, certain=True)


def router(tmp_path: Path, *contexts: int) -> Router:
    """Models whose checkpoints have these contexts; the shortest is the best."""
    sources = [checkpoint(tmp_path / str(one), max_position_embeddings=one) for one in contexts]
    models = [spec(source, name=Path(source).name, trinity=99 - place) for place, source in enumerate(sources)]
    return Router(Catalog(models))


def chosen(router: Router, words: int, tools: Any = (), **context: Any) -> str:
    messages: list[BaseMessage] = [HumanMessage("word" * words)]  # a token each
    medium = rules("word " * 20)
    return router.decide(messages, medium, Context(**{"max_tokens": 1, **context}), tools=tools)["model"]


def test_a_short_model_is_no_candidate_for_a_long_conversation(tmp_path: Path) -> None:
    made = router(tmp_path, 2048, 4096)
    assert not made.ready
    assert (chosen(made, 1000), chosen(made, 3000)) == ("2048", "4096")
    assert made.ready
    (tmp_path / "2048" / "config.json").unlink()  # what is known is not read again
    assert chosen(made, 3000) == "4096"


@tool
def long_winded(text: str) -> str:
    """Do something that takes many words to explain."""
    return text


long_winded.description = "word" * 1500


def test_all_that_the_model_is_told_counts(tmp_path: Path) -> None:
    made = router(tmp_path, 2048, 4096)
    assert chosen(made, 1000) == "2048"
    assert chosen(made, 1000, system_prompt="word" * 1500) == "4096"
    assert chosen(made, 1000, tools=[long_winded]) == "4096"


def test_the_answer_needs_room(tmp_path: Path) -> None:
    made = router(tmp_path, 2048, 4096)
    assert chosen(made, 1700) == "2048"
    assert chosen(made, 1700, max_tokens=512) == "4096"
    assert chosen(made, 1500, max_tokens=100_000) == "2048"  # a quarter of the context will do
    short = router(tmp_path, 2048)
    assert chosen(short, 1900, max_tokens=512) == "2048"  # where no model has the room, a short answer will do
    with pytest.raises(errors.PromptTooLongError):
        chosen(short, 2100)


def test_so_it_is_in_the_graph_and_in_an_agent(tmp_path: Path, fake_engine: type[FakeEngine]) -> None:
    catalog = router(tmp_path, 2048, 4096).catalog
    chat = ChatModels(catalog, pool=EnginePool(fake_engine))
    graph = create_chancellor(catalog, generate=generation_node(chat)).compile()
    assert graph.invoke({"messages": EASY})["decision"]["model"] == "2048"
    prompt = "word" * 3000
    assert graph.invoke({"messages": EASY}, context={"system_prompt": prompt})["decision"]["model"] == "4096"

    def agent(**options: Any) -> str:
        made = agents.create_agent(chat["2048"], middleware=[TrinityMiddleware(catalog, models=chat)], **options)
        answer = made.invoke({"messages": [HumanMessage(EASY)]})["messages"][-1]
        return str(answer.response_metadata["decision"]["model"])

    assert agent() == "2048"
    assert agent(system_prompt=prompt) == "4096"
    assert agent(tools=[long_winded], system_prompt="word" * 600) == "4096"
