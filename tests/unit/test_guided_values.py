"""What guides let through: byte by byte, by the library that vLLM takes, and by xgrammar alone."""

import json
from types import SimpleNamespace
from typing import Any

import llguidance
import pytest
import xgrammar
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

from chancellor.catalog import ModelSpec
from chancellor.engines import GenerationRequest, Guide
from chancellor.engines.answers import Plan
from chancellor.engines.answers.guides import json_format, structural_tag
from chancellor.engines.answers.keywords import bindable
from chancellor.engines.answers.schemas import bounded
from chancellor.engines.prompt import Prompt
from chancellor.engines.vllm import VLLMEngine
from chancellor.engines.vllm_requests import sampling_params
from chancellor.errors import InvalidInputError
from tests.guided import BY_GUIDANCE, INTEGER, KEPT, LONG, REFUSED, fields


def told_by_0_26(schema: Any) -> bool:
    """Tell what vLLM 0.26 knows that xgrammar leaves out."""
    if isinstance(schema, list):
        return any(map(told_by_0_26, schema))
    if not isinstance(schema, dict):
        return False
    kind = schema.get("type")
    if kind in ("integer", "number") and "multipleOf" in schema:
        return True
    if kind == "array" and schema.keys() & {"uniqueItems", "contains", "minContains", "maxContains"}:
        return True
    if kind == "object" and schema.keys() & {"patternProperties", "propertyNames"}:
        return True
    return any(map(told_by_0_26, schema.values()))


def taken_by_xgrammar(schema: dict[str, Any], text: str) -> bool:
    vocabulary = [bytes([number]) for number in range(256)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, vocab_size=257, stop_token_ids=[256])
    tag = structural_tag(json_format(schema)).value
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_structural_tag(tag))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)


def taken_by_guidance(schema: str, text: str) -> bool:
    tokenizer = llguidance.LLTokenizer("byte")
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(schema), log_level=0)
    assert not matcher.get_error()
    return bool(matcher.consume_tokens(tokenizer.tokenize_str(text)) and matcher.is_accepting())


def by_vllm(schema: dict[str, Any]) -> Any:
    guide = bindable(Guide("json_schema", schema))
    assert guide is not None
    plan = Plan([], guide=Guide("json_schema", bounded(guide.value)))
    return sampling_params(GenerationRequest(), Prompt([1]), plan).structured_outputs


@pytest.mark.parametrize("name", KEPT)
def test_what_xgrammar_keeps(name: str) -> None:
    schema, valid, broken = KEPT[name]
    outputs, alone = by_vllm(schema), bindable(Guide("json_schema", schema), xgrammar_only=True)
    assert alone is not None
    for bound in (json.loads(outputs.structural_tag)["format"]["json_schema"], bounded(alone.value)):
        assert [text for text in (*valid, *broken) if taken_by_xgrammar(bound, text)] == valid


@pytest.mark.parametrize("name", [*BY_GUIDANCE, "a format and a length"])
def test_what_llguidance_keeps(name: str) -> None:
    schema, valid, broken = BY_GUIDANCE.get(name, LONG)
    outputs = by_vllm(schema)
    assert told_by_0_26(json.loads(outputs.json))
    assert has_xgrammar_unsupported_json_features(json.loads(outputs.json))
    assert [text for text in (*valid, *broken) if taken_by_guidance(outputs.json, text)] == valid
    if name in BY_GUIDANCE:
        with pytest.raises(InvalidInputError, match="nothing keeps") as caught:
            bindable(Guide("json_schema", schema), xgrammar_only=True)
        assert "vLLM keeps it" in str(caught.value.hint)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    reason, schema = REFUSED[name]
    for alone in (False, True):
        with pytest.raises(InvalidInputError, match="nothing keeps") as caught:
            bindable(Guide("json_schema", schema), xgrammar_only=alone)
        assert reason in caught.value.message
        assert ("$defs" in caught.value.hint) is ("$ref" in reason)


def test_what_each_library_keeps_half_of_is_refused() -> None:
    both = fields(a={"multipleOf": 5}, b={"type": "object", "patternProperties": {"^a": INTEGER}})
    with pytest.raises(InvalidInputError, match="'multipleOf' at #/properties/a"):
        by_vllm(both)


async def test_beside_tools_vllm_has_but_one_library() -> None:
    engine = VLLMEngine(ModelSpec(name="a", source="a", trinity=1, tier="light"))
    engine._llm = SimpleNamespace(get_tokenizer=lambda: None)
    tool: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {}}}
    guide = Guide("json_schema", BY_GUIDANCE["two schemas"][0])
    request = GenerationRequest(messages=[{"role": "user", "content": "a"}], guide=guide, tools=(tool,))
    with pytest.raises(InvalidInputError, match="'allOf' of several schemas"):
        await anext(engine.generate(request))


def test_branches_within_branches_take_no_time() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(60):
        schema = {"anyOf": [schema]}
    assert bindable(Guide("json_schema", schema), xgrammar_only=True) is not None
