"""Tokens of texts and conversations, counted without an engine and without a network."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import base
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import tool

from chancellor import Catalog, ChatVLLM, EngineOptions, ModelSpec, errors
from chancellor.chat import tokens
from tests.tiny import TEMPLATE, make_tokenizer

TALK: list[BaseMessage] = [
    SystemMessage("Be brief."),
    HumanMessage("What is two plus two?"),
    AIMessage("Four."),
    HumanMessage("Explain how a cache works, and compare it with a database."),
]
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(autouse=True)
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain's own asks the hub for GPT-2's."""

    def fail() -> Any:
        raise AssertionError("GPT-2's tokenizer was asked for.")

    monkeypatch.setattr(base, "get_tokenizer", fail)


def model_of(source: Path | str, **more: Any) -> ChatVLLM:
    engine = EngineOptions(**more)
    return ChatVLLM(model="m", catalog=Catalog([ModelSpec(name="m", source=str(source), trinity=99, engine=engine)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's files without its weights, which nothing here reads."""
    made = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(made)
    return made


@pytest.fixture
def model(folder: Path) -> ChatVLLM:
    return model_of(folder)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str | None], ChatVLLM]:
    """Return what makes a model of nothing but a tokenizer with that chat template."""

    def made(template: str | None) -> ChatVLLM:
        make_tokenizer(tmp_path, template=template)
        return model_of(tmp_path)

    return made


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_text(model: ChatVLLM, tokenizer: Any) -> None:
    text = "What is two plus two? <|end|> zwölf"
    ids = model.get_token_ids(text)
    assert tokenizer.decode(ids) == text
    assert model.get_num_tokens(text) == len(ids) > 5
    assert model.get_num_tokens("") == 0


def test_a_conversation_is_what_the_model_reads(model: ChatVLLM, tokenizer: Any) -> None:
    told = [{"role": role, "content": str(one.content)} for role, one in zip(("system", "user"), TALK, strict=False)]
    wanted = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert model.get_num_tokens_from_messages(TALK[:2]) == len(wanted)
    assert model.get_num_tokens_from_messages([]) == 0
    assert model.get_num_tokens_from_messages(TALK) > len(wanted)


def test_tools_and_calls_count(model: ChatVLLM) -> None:
    plain = model.get_num_tokens_from_messages(TALK)
    assert model.get_num_tokens_from_messages(TALK, tools=[add]) > plain + 20
    call = AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "1"}])
    done = [*TALK, call, ToolMessage("3", tool_call_id="1")]
    assert model.get_num_tokens_from_messages(done) > plain + 20


def test_trimming(model: ChatVLLM) -> None:
    whole = model.get_num_tokens_from_messages(TALK)

    def kept(most: int) -> list[BaseMessage]:
        return trim_messages(TALK, max_tokens=most, token_counter=model, include_system=True, start_on="human")

    assert kept(whole + 5) == TALK  # LangChain counts the system message apart, and the end of each prompt with it
    assert kept(whole - 1) == [TALK[0], TALK[3]]
    assert model.get_num_tokens_from_messages(kept(whole - 1)) < whole


@pytest.mark.parametrize("template", [None, STRICT], ids=["none", "strict"])
def test_templates_that_take_no_part_of_a_conversation(
    make: Callable[[str | None], ChatVLLM], template: str | None
) -> None:
    model = make(template)
    whole = model.get_num_tokens_from_messages(TALK)
    assert whole > model.get_num_tokens_from_messages(TALK[2:]) > model.get_num_tokens(str(TALK[3].content))
    least = model.get_num_tokens_from_messages(TALK[3:])
    assert trim_messages(TALK, max_tokens=least + 1, token_counter=model) == TALK[3:]


def test_a_model_on_a_server_is_approximated() -> None:
    far = model_of("gpt", kind="openai", base_url="http://127.0.0.1:9/v1")
    assert far.get_num_tokens("a" * 41) == 11
    assert far.get_num_tokens_from_messages(TALK) == count_tokens_approximately(TALK)
    assert far.get_num_tokens_from_messages(TALK, tools=[add]) > count_tokens_approximately(TALK) + 20
    with pytest.raises(errors.InvalidInputError, match="get_num_tokens"):
        far.get_token_ids("a")


def test_a_counter_of_the_users(model: ChatVLLM) -> None:
    own = model.model_copy(update={"custom_get_token_ids": lambda text: [0] * len(text.split())})
    assert own.get_token_ids("a b") == [0, 0]
    assert own.get_num_tokens("a b c") == 3
    assert own.get_num_tokens_from_messages([HumanMessage("a b")]) == 3  # "Human: a b"


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.SourceNotFoundError, match="not on this machine yet"):
        model_of("fake/light").get_num_tokens("a")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(errors.BrokenCheckpointError, match="cannot be read"):
        model_of(tmp_path).get_num_tokens("a")


def test_without_transformers(model: ChatVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens._load.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(errors.MissingDependencyError, match="transformers"):
        model.get_num_tokens("a")
