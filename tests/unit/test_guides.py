"""Which JSON schemas are served: against the libraries themselves, and the way in which vLLM takes one of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import xgrammar
from pydantic import BaseModel, Field, HttpUrl, SecretStr
from transformers import AutoTokenizer
from vllm.config import StructuredOutputsConfig

from chancellor.engines import GenerationRequest, Guide
from chancellor.engines.answers import Plan
from chancellor.engines.answers.guides import json_format, refusal_of, structural_tag
from chancellor.engines.answers.keywords import bindable
from chancellor.engines.answers.schemas import bounded
from chancellor.engines.prompt import Prompt
from chancellor.engines.vllm_requests import refused_by_vllm, sampling_params
from chancellor.errors import InvalidInputError
from tests.tiny import make_tokenizer


def fields(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def texts(**more: Any) -> dict[str, Any]:
    return fields(a={"type": "array", "items": {"type": "string"}, **more})


class Account(BaseModel):
    """What forms ask for."""

    secret: SecretStr
    site: HttpUrl
    data: bytes
    by_kind: dict[Annotated[str, Field(max_length=3)], int]


REFERRED = {"$defs": {"x": {"type": "integer"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}}
SERVED: dict[str, dict[str, Any]] = {
    "pydantic": Account.model_json_schema(),
    "password": fields(a={"type": "string", "format": "password"}),
    "password with a length": fields(a={"type": "string", "format": "password", "maxLength": 8}),
    "a format that is none": fields(a={"type": "string", "format": ["x"]}),
    "int32": fields(a={"type": "integer", "format": "int32"}),
    "email": fields(a={"type": "string", "format": "email"}),
    "a format with a length": fields(a={"type": "string", "format": "uri-reference", "maxLength": 40}),
    "nothing unique": texts(uniqueItems=False),
    "one item": texts(uniqueItems=True, maxItems=1),
    "a property of that name": fields(uniqueItems={"type": "integer"}, contains={"type": "integer"}),
    "a value of that name": fields(a={"const": {"not": 1}}),
    "nothing unevaluated": {"type": "object", "properties": {"a": {"type": "integer"}}, "unevaluatedProperties": False},
    "no further items": {"type": "array", "prefixItems": [{"type": "integer"}], "unevaluatedItems": False},
    "names": {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
    "names with a length": {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": True},
    "a number or a text": fields(
        a={"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!^[-+.]*$)\\d*$"}]}
    ),
    "patterns of names": {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "properties": {"b": {}}},
    "oneOf": fields(a={"oneOf": [{"type": "integer"}, {"type": "string"}]}),
    "a reference": REFERRED,
}
ONLY_VLLM: dict[str, dict[str, Any]] = {
    "'multipleOf'": fields(a={"type": "integer", "multipleOf": 5}),
    "'pattern' beside a length": fields(a={"type": "string", "pattern": "^[a-z]+$", "maxLength": 5}),
    "'allOf' of several schemas": {"allOf": [fields(a={"type": "integer"}), fields(b={"type": "integer"})]},
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "uniqueItems": ("'uniqueItems' at #/properties/a", texts(uniqueItems=True)),
    "uniqueItems without a type": ("'uniqueItems' at #", {"uniqueItems": True}),
    "a set or nothing": ("'uniqueItems'", fields(a={"anyOf": [texts(uniqueItems=True), {"type": "null"}]})),
    "contains": ("'contains'", texts(contains={"const": "x"})),
    "minContains": ("'contains'", texts(contains={"const": "x"}, minContains=0, maxContains=1)),
    "not": ("'not'", fields(a={"type": "string", "not": {"const": "x"}})),
    "if": ("'if'", {**fields(a={"type": "integer"}), "if": {"required": ["a"]}, "then": {"required": ["b"]}}),
    "dependentRequired": ("'dependentRequired'", {**fields(a={}), "dependentRequired": {"a": ["b"]}}),
    "dependentSchemas": ("'dependentSchemas'", {**fields(a={}), "dependentSchemas": {"a": {"required": ["b"]}}}),
    "unevaluated beside a reference": (
        "'unevaluatedProperties'",
        {"$defs": {"x": fields(a={})}, "$ref": "#/$defs/x", "unevaluatedProperties": False},
    ),
    "look-ahead": ("looks ahead", fields(a={"type": "string", "pattern": "^(?=.*a).+$"})),
    "look-ahead with a length": ("looks ahead", fields(a={"type": "string", "pattern": "(?!a)", "maxLength": 5})),
    "a text that looks ahead or nothing": (
        "looks ahead",
        fields(a={"anyOf": [{"type": "string", "pattern": "(?!a)"}, {"type": "null"}]}),
    ),
    "names beside properties": ("'propertyNames'", {**fields(a={}), "propertyNames": {"pattern": "^a"}}),
    "a pattern and a length of names": (
        "'propertyNames'",
        {"type": "object", "propertyNames": {"pattern": "^a", "maxLength": 3}},
    ),
    "in a definition": ("#/$defs/x/items", {"$defs": {"x": {"items": {"not": {}}}}, "$ref": "#/$defs/x"}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return AutoTokenizer.from_pretrained(path)


def validated(guide: Guide, tokenizer: Any) -> str:
    """Have vLLM check a guide as it does with each request; return the library that it takes."""
    plan = Plan([], guide=Guide("json_schema", bounded(guide.value)) if guide.kind == "json_schema" else guide)
    params = sampling_params(GenerationRequest(), Prompt([1]), plan)
    model: Any = SimpleNamespace(skip_tokenizer_init=False, is_diffusion=False)
    params._validate_structured_outputs(model, StructuredOutputsConfig(backend="auto"), tokenizer)
    assert params.structured_outputs is not None
    return str(params.structured_outputs._backend)


@pytest.mark.parametrize("name", SERVED)
def test_a_schema_that_is_served(name: str, tokenizer: Any) -> None:
    guide = Guide("json_schema", SERVED[name])
    before = json.dumps(guide.value)
    bound = bindable(guide)
    assert bound is not None
    assert validated(bound, tokenizer) in ("xgrammar", "guidance")
    assert refusal_of(bindable(guide, xgrammar_only=True)) is None
    assert json.dumps(guide.value) == before


@pytest.mark.parametrize("keyword", ONLY_VLLM)
def test_a_schema_that_only_vllm_keeps(keyword: str, tokenizer: Any) -> None:
    guide = Guide("json_schema", ONLY_VLLM[keyword])
    bound = bindable(guide)
    assert bound is not None
    assert validated(bound, tokenizer) == "guidance"
    with pytest.raises(InvalidInputError, match=keyword):
        bindable(guide, xgrammar_only=True)


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_nothing_keeps_is_refused_by_the_name_of_what_is_in_the_way(name: str) -> None:
    reason, schema = REFUSED[name]
    for alone in (False, True):
        with pytest.raises(InvalidInputError, match="nothing keeps") as caught:
            bindable(Guide("json_schema", schema), xgrammar_only=alone)
        assert reason in caught.value.message


@pytest.mark.parametrize(
    ("name", "kept", "broken"),
    [
        ("nothing unevaluated", '{"a": 1}', '{"a": 1, "b": 1}'),
        ("no further items", "[1]", "[1, 2]"),
        ("a number or a text", '{"a": 1}', '{"a": "+"}'),
        ("patterns of names", '{"a": 1}', '{"a": "x"}'),
        ("names", '{"b": 1}', '{"c": 1}'),
        ("password with a length", '{"a": "12345678"}', '{"a": "123456789"}'),
    ],
)
def test_what_is_served_is_kept(name: str, kept: str, broken: str) -> None:
    guide = bindable(Guide("json_schema", SERVED[name]), xgrammar_only=True)
    assert guide is not None
    vocabulary = [bytes([number]) for number in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, vocab_size=257, stop_token_ids=[256])
    tag = structural_tag(json_format(guide.value)).value
    compiled = xgrammar.GrammarCompiler(info).compile_structural_tag(tag)
    for text, valid in ((kept, True), (broken, False)):
        matcher = xgrammar.GrammarMatcher(compiled)
        accepted = all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)
        assert accepted is valid, text


def test_other_guides_are_left_alone() -> None:
    for guide in (None, Guide("json_object"), Guide("regex", "(?=a)b"), Guide("choice", ["a"])):
        assert bindable(guide) is guide


@pytest.mark.parametrize(
    ("guide", "named"),
    [
        (Guide("json_schema", fields(a={"oneOf": [ONLY_VLLM["'multipleOf'"], fields(a={})]})), "write anyOf"),
        (Guide("regex", "a\x00b"), "NUL"),
        (Guide("grammar", "root :="), "grammar"),
        (Guide("json_schema", fields(a={"type": "string", "pattern": "x" * 400 + "(", "maxLength": 5})), "..."),
    ],
)
def test_what_vllm_does_not_take_is_the_callers_to_change(guide: Guide, named: str, tokenizer: Any) -> None:
    def add_request() -> None:  # the name of vLLM's
        validated(guide, tokenizer)

    with pytest.raises(Exception) as caught:  # vLLM's own, different in each release
        add_request()
    refusal = refused_by_vllm(caught.value)
    assert refusal is not None
    assert named in refusal.message
    assert len(refusal.message) < 400


def test_other_errors_are_not_the_callers() -> None:
    for kind in (ValueError, RuntimeError):
        with pytest.raises(kind) as caught:
            raise kind("a step failed")
        assert refused_by_vllm(caught.value) is None


def test_older_releases_of_vllm_raise_value_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import exceptions

    for name in ("VLLMClientError", "VLLMValidationError"):
        monkeypatch.delattr(exceptions, name)

    def add_request() -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="thing") as caught:
        add_request()
    refusal = refused_by_vllm(caught.value)
    assert refusal is not None
    assert "no such thing" in refusal.message
