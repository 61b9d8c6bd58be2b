"""The endpoint against its own OpenAPI, with an engine that reads each request: what the schema allows is no 500."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.drawing import limits, made_to_fit
from tests.integration.served import Served
from tests.tiny import make_model

pytestmark = pytest.mark.engine
CHAT = "/v1/chat/completions"
CHECKS: Any = [not_a_server_error, status_code_conformance, response_schema_conformance]
FEW: dict[str, str] = {
    "CHANCELLOR_SERVE_DEFAULT_MAX_TOKENS": "4",
    "CHANCELLOR_SERVE_MAX_CHOICES": "4",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("schema")
    model = make_model(folder / "tiny", context=2048)
    entry = ["[[models]]", 'name = "tiny"', f'source = "{model}"', "trinity = 96", 'tier = "light"']
    (folder / "chancellor.toml").write_text("\n".join([*entry, "[models.engine]", 'dtype = "float32"']))
    with Served("--config", str(folder / "chancellor.toml"), "--preload", "tiny", **FEW) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def described(server: Served) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        made_to_fit(patch)
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_whatever_the_schema_allows_is_answered_or_refused(described: Any, path: str) -> None:
    statuses: list[int] = []

    @limits(25)
    @hypothesis.given(case=described[path]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def holds(case: schemathesis.Case) -> None:
        body = case.body
        if isinstance(body, dict):
            body["model"] = ("tiny", "chancellor")[len(str(body.get("model"))) % 2]  # which no generator guesses
            for name in ("max_tokens", "max_completion_tokens"):
                if isinstance(body.get(name), int):
                    body[name] = min(body[name], 4)
            if "messages" in body and len(statuses) % 4:  # most that are drawn are refused, whatever else is asked for
                body["messages"] = [{"role": "user", "content": "What is two plus two?"}]
        statuses.append(case.call_and_validate(checks=CHECKS, timeout=120).status_code)

    holds()
    assert 200 in statuses
    assert set(statuses) <= {200, 400}, sorted(statuses)


TEXT = {"type": "string"}
SCHEMAS: list[tuple[dict[str, Any], str | None]] = [
    ({"type": "string", "format": "password", "maxLength": 2}, None),
    ({"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}, None),
    ({"type": "integer", "multipleOf": 5}, None),
    ({"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": {"type": "null"}}, None),
    ({"type": "object", "patternProperties": {"^a": TEXT}, "properties": {"b": TEXT}, "maxProperties": 1}, None),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False}, None),
    ({"type": "object", "properties": {"a": TEXT}, "required": ["b"]}, None),
    ({"allOf": [{"type": "object", "properties": {"a": TEXT}}], "properties": {"b": TEXT}, "required": ["b"]}, None),
    ({"properties": {"a": {"type": ["string", "null"], "pattern": "^a+$", "maxLength": 3}}, "required": ["a"]}, None),
    ({"type": "string", "format": "email", "pattern": "^(?!a).+$"}, None),
    ({"anyOf": [TEXT, {"properties": {"a": {"type": "string", "pattern": "(?!a)"}}}]}, "looks ahead"),
    ({"$ref": "#/components/a", "components": {"a": TEXT}}, "$ref"),
    ({"type": "array", "items": TEXT, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "items": TEXT, "contains": {"const": "a"}}, "contains"),
    ({"type": "string", "pattern": "^(?=a).+$", "maxLength": 4}, "looks ahead"),
    ({"oneOf": [{"type": "integer", "multipleOf": 5}, {"type": "integer", "multipleOf": 3}]}, "anyOf"),
    ({"type": "object", "propertyNames": {"pattern": "^a", "maxLength": 3}}, "propertyNames"),
]


@pytest.mark.parametrize(("schema", "refused"), SCHEMAS)
def test_schemas(server: Served, schema: dict[str, Any], refused: str | None) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "response_format": form}
    answer = httpx.post(f"{server.url}{CHAT}", json=body, timeout=120)
    assert answer.status_code == (200 if refused is None else 400), answer.text
    if refused is not None:
        assert refused in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "given",
    [
        {"structured_outputs": {"regex": "a\x00b"}},
        {"structured_outputs": {"regex": ""}},
        {"structured_outputs": {"grammar": " "}},
        {"structured_outputs": {"structural_tag": {"type": "structural_tag", "format": {"type": "no"}}}},
        {"stop": ["a" * 5000]},
    ],
)
def test_what_the_engine_does_not_take_is_no_failure_of_the_servers(server: Served, given: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, **given}
    assert httpx.post(f"{server.url}{CHAT}", json=body, timeout=120).status_code in (200, 400)
