"""The endpoint against its own OpenAPI: whatever the schema allows, and much that it does not."""

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from chancellor.engines import EnginePool
from tests.drawing import limits, made_to_fit
from tests.fakes import FakeEngine
from tests.serving import app_of, client_of, pooled

CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="module")
def described() -> Iterator[Any]:
    """The endpoint's schema."""
    with pooled() as pool, pytest.MonkeyPatch.context() as patch:
        made_to_fit(patch)
        app = app_of(pool, allowed_hosts=("testserver", "localhost"), preload=("light",), max_choices=8)
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /ready",
    "GET /metrics",
]


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        *((label, schemathesis.GenerationMode.POSITIVE) for label in OPERATIONS),
        *((label, schemathesis.GenerationMode.NEGATIVE) for label in OPERATIONS[:2]),
    ],
)
def test_the_schema_holds(described: Any, label: str, mode: schemathesis.GenerationMode) -> None:
    operations = {found.ok().label: found.ok() for found in described.get_all_operations()}
    assert sorted(operations) == sorted(OPERATIONS)
    statuses: set[int] = set()

    @limits(100)
    @hypothesis.given(case=operations[label].as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case) -> None:
        FakeEngine.requests.clear()
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and case.body["model"]:
            case.body["model"] = ("light", "chancellor")[len(case.body["model"]) % 2]  # which no generator guesses
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    holds()
    if mode is schemathesis.GenerationMode.NEGATIVE:
        assert statuses <= {200, 400, 404, 415}
    elif label.startswith("POST"):
        assert 200 in statuses


def test_the_schema_is_openais(described: Any) -> None:
    raw = described.raw_schema
    for path in ("/v1/chat/completions", "/v1/completions"):
        responses = raw["paths"][path]["post"]["responses"]
        assert {"application/json", "text/event-stream"} == set(responses["200"]["content"])
        assert {"400", "401", "404", "408", "413", "429", "500", "502", "503", "504", "4XX"} <= set(responses)
    assert "422" not in json.dumps(raw["paths"])


async def test_the_schema_says_where_a_key_is_needed(serving_pool: EnginePool) -> None:
    """And no client that believes it is sent away for want of one."""
    app = app_of(serving_pool, api_keys=("one",))
    async with client_of(app) as client:
        assert (await client.get("/openapi.json")).status_code == 401
        for _ in range(2):  # it is made once, and kept
            schema = (await client.get("/openapi.json", headers={"authorization": "Bearer one"})).json()
            assert schema["components"]["securitySchemes"]["key"]["type"] == "http"
            assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                refused = (await client.request(method, path)).status_code == 401
                assert operation["security"] == ([{"key": []}] if refused else []), path


def test_without_keys_the_schema_asks_for_none(described: Any) -> None:
    assert "security" not in json.dumps(described.raw_schema)
