"""Prompts that are too long for a step down."""

from collections.abc import AsyncIterator, Iterator

import pytest

from chancellor.engines import Delta, EnginePool, GenerationRequest
from chancellor.engines.ladder import Ladder
from chancellor.errors import BrokenCheckpointError, OutOfMemoryError, PromptTooLongError
from chancellor.fallbacks import FallbackOptions
from tests.faulty import WAYS, A, B, FaultyEngine, Plan, request, text_of, whole

SIZE = 3_000
LONG = "x" * SIZE
SHORT_B = B.model_copy(update={"engine": B.engine.model_copy(update={"max_model_len": 1024})})


class Limited(FaultyEngine):
    """A letter is a token."""

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        size = len(str(request.messages[-1]["content"]))
        if size >= self.spec.engine.max_model_len:
            raise PromptTooLongError(f"The prompt has {size} tokens.")
        async for delta in super().generate(request):
            yield delta


@pytest.fixture
def limited() -> Iterator[EnginePool]:
    FaultyEngine.reset(Plan(start_errors={"a/vllm/int8": [OutOfMemoryError("No room.")]}))
    pool = EnginePool(Limited)
    yield pool
    pool.close()
    FaultyEngine.reset()


def test_a_prompt_that_is_too_long_for_a_shorter_context_goes_to_another_model(limited: EnginePool) -> None:
    deltas = list(limited.generate(A, request(LONG), WAYS))
    assert whole(deltas) == text_of(range(SIZE, SIZE + 10))
    assert [(step["step"], step["cause"]) for step in deltas[-1].fallbacks] == [
        ("shorter_context", "memory"),
        ("other_model", "memory"),
    ]
    assert "3000 tokens" in deltas[-1].fallbacks[1]["reason"]
    assert deltas[-1].model == "b"
    assert all(one.users == 0 for one in limited._residents.ready())
    # a short one is served where it was
    assert list(limited.generate(A, request(), WAYS))[-1].model == "a"


def test_without_leave_the_prompt_is_too_long(limited: EnginePool) -> None:
    ways = Ladder(FallbackOptions(other_model=False), lambda: [B])
    with pytest.raises(PromptTooLongError, match=r"3000 tokens.*\n.*shorter_context"):
        list(limited.generate(A, request(LONG), ways))
    assert [spec.engine.max_model_len for spec in FaultyEngine.starts] == [4096, 2048]


def test_a_model_with_even_less_context_is_not_tried(limited: EnginePool) -> None:
    with pytest.raises(PromptTooLongError):
        list(limited.generate(A, request(LONG), Ladder(FallbackOptions(), lambda: [SHORT_B])))
    assert {spec.name for spec in FaultyEngine.starts} == {"a"}


def test_a_prompt_that_is_too_long_for_what_was_asked_stays_so(limited: EnginePool) -> None:
    large = B.model_copy(update={"engine": B.engine.model_copy(update={"max_model_len": 16_384})})
    FaultyEngine.reset(Plan(deaths=[]))
    with pytest.raises(PromptTooLongError):
        list(limited.generate(A, request("x" * 5_000), Ladder(FallbackOptions(), lambda: [large])))
    assert [spec.name for spec in FaultyEngine.starts] == ["a"]


def test_a_substitute_with_less_context_is_left_as_well(limited: EnginePool) -> None:
    broken = BrokenCheckpointError("x")
    FaultyEngine.reset(Plan(start_errors={"a/vllm/int8": [broken]}))
    large = B.model_copy(update={"name": "c", "source": "fake/c"})
    deltas = list(limited.generate(A, request(LONG), Ladder(FallbackOptions(), lambda: [SHORT_B, large])))
    assert deltas[-1].model == "c"
    assert [step["to"].split()[0] for step in deltas[-1].fallbacks] == ["b", "c"]
