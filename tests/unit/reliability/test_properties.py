import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chancellor import Catalog, FallbackOptions, ModelSpec, create_chancellor
from chancellor.chat import ChatModels
from chancellor.engines import EnginePool, GenerationRequest, room
from chancellor.engines.ladder import Ladder, Rung, cause_of
from chancellor.engines.resident import key_of
from chancellor.engines.room import Room, fitted
from chancellor.errors import (
    BrokenCheckpointError,
    ChancellorError,
    EngineDiedError,
    EngineStartError,
    MissingDependencyError,
    OutOfMemoryError,
    QuantizationError,
)
from chancellor.memory import Device, Estimate
from chancellor.nodes import generation_node
from tests.faulty import FaultyEngine, Plan, text_of

MODELS = [
    ModelSpec(name=name, source=f"fake/{name}", trinity=99.0, parameters=size, scheme=scheme)
    for name, size, scheme in (("a", 3_000, "int8"), ("b", 2_000, None), ("c", 1_000, "int8wo"))
]
KINDS: tuple[type[ChancellorError], ...] = (
    OutOfMemoryError,
    QuantizationError,
    BrokenCheckpointError,
    EngineStartError,
    EngineDiedError,
    MissingDependencyError,
)
CAUSES = [cause for kind in KINDS if (cause := cause_of(kind("x"))) is not None]
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
options = st.builds(
    FallbackOptions,
    shorter_context=st.booleans(),
    unquantised=st.booleans(),
    transformers=st.booleans(),
    other_model=st.booleans(),
)


def estimate(weights: int, wanted: int, least: int) -> Estimate:
    return Estimate(("cpu",), weights, wanted, least, activations=0, graphs=0, overhead=0)


class Desk(Room):
    """Room for so many units; each model needs one for itself and one for its cache."""

    def __init__(self, size: int) -> None:
        self._size = size

    def expected(self, spec: ModelSpec) -> Estimate:
        return estimate(1, 1, 1)

    def _read(self) -> list[Device]:
        return [Device("cpu", self._size, self._size, self._size)]

    def took(self, *_: object) -> None:
        return None


@given(
    budget=st.integers(0, 200),
    free=st.integers(0, 200),
    taken=st.integers(0, 200),
    weights=st.integers(0, 100),
    least=st.integers(1, 50),
    more=st.integers(0, 50),
)
def test_what_is_granted_fits(budget: int, free: int, taken: int, weights: int, least: int, more: int) -> None:
    class Fixed(Room):
        def __init__(self) -> None:
            pass

        def _read(self) -> list[Device]:
            return [Device("cpu", 200, free, budget)]

    need = estimate(weights, least + more, least)
    fit = Fixed().fit(need, {"cpu": taken})
    if fit.kv_cache is None:
        assert not fit.comfortable
        assert weights + least > min(budget - taken, free)
    else:
        assert least <= fit.kv_cache <= least + more
        assert weights + fit.kv_cache <= min(budget - taken, free)
        cache = fitted(MODELS[0], fit).engine.kv_cache_gib
        assert cache is not None
        assert int(cache * 2**30) in (fit.kv_cache - 1, fit.kv_cache)
    if not taken:
        assert fit.possible == (fit.kv_cache is not None)


UNIT = 64 * 2**20
"""Bytes: what is left over of a GPU is some of these."""
units = st.integers(0, 200)


@st.composite
def cards(draw: st.DrawFn) -> list[tuple[Device, int, int, int]]:
    """Draw GPUs, and what of each engines of this pool take, will be free, and engines of other pools take."""
    drawn = draw(st.lists(st.tuples(*[units] * 5), min_size=1, max_size=3))
    return [
        (Device(f"cuda:{index}", 400 * UNIT, free * UNIT, budget * UNIT), ours * UNIT, freed * UNIT, theirs * UNIT)
        for index, (free, budget, ours, freed, theirs) in enumerate(drawn)
    ]


@settings(max_examples=400)
@given(gpus=cards(), fixed=st.integers(0, 100), least=st.integers(1, 50), more=st.integers(0, 50))
def test_what_is_granted_fits_on_each_gpu(gpus: Any, fixed: int, least: int, more: int) -> None:
    class Fixed(Room):
        def __init__(self) -> None:
            pass

        def _read(self) -> list[Device]:
            return [card for card, *_ in gpus]

    own = tuple(card.name for card, *_ in gpus)
    need = Estimate(own, fixed * UNIT, (least + more) * UNIT, least * UNIT, activations=0, graphs=0, overhead=0)
    ours, freed, theirs = ({card.name: one[place] for card, *one in gpus} for place in range(3))
    fit = Fixed().fit(need, ours, freed, theirs)
    left = [card.budget - ours[card.name] - theirs[card.name] for card, *_ in gpus]
    free = [card.free + freed[card.name] for card, *_ in gpus]
    most = min(*left, *free)
    others = any(have < may for have, may in zip(free, left, strict=True))
    if fit.kv_cache is None:
        assert not fit.comfortable
        assert need.least > most  # what is left over keeps nobody out
    else:
        assert need.kv_cache_least <= fit.kv_cache <= need.kv_cache
        assert need.fixed + fit.kv_cache <= most
        if others and fit.kv_cache > need.kv_cache_least:
            assert need.fixed + fit.kv_cache <= most - room._SPARE
        if not others:  # nothing is left over where nobody else is
            assert fit.kv_cache == min(need.kv_cache, most - need.fixed)
    assert fit.comfortable == (most >= need.enough)
    assert fit.occupied == (most < need.enough <= min(left))
    assert fit.never == any(card.budget < need.least for card, *_ in gpus)
    rooms = (
        (card.budget - theirs[card.name], have + ours[card.name]) for (card, *_), have in zip(gpus, free, strict=True)
    )
    assert fit.possible == (min(min(pair) for pair in rooms) >= need.least)
    assert fit.share is not None
    assert 0 < fit.share <= 1


@given(options=options, causes=st.lists(st.sampled_from(CAUSES), min_size=60, max_size=60))
def test_every_way_down_ends_and_takes_no_step_twice_or_without_leave(options: FallbackOptions, causes: Any) -> None:
    ladder = Ladder(options, lambda: MODELS[1:])
    spec, seen = MODELS[0], [key_of(MODELS[0])]
    allowed = {name for name, may in options.model_dump().items() if may}
    for cause in causes:
        rung: Rung | None = next((one for one in ladder.below(spec, cause) if key_of(one.spec) not in seen), None)
        if rung is None:
            return
        assert rung.step in allowed
        if rung.step != "other_model":
            assert rung.spec.name == spec.name
        if rung.step == "shorter_context":
            assert 512 <= rung.spec.engine.max_model_len < spec.engine.max_model_len
        seen.append(key_of(rung.spec))
        spec = rung.spec
    raise AssertionError("The ladder has no end.")


@SLOW
@given(
    size=st.integers(2, 7),
    order=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40),
)
def test_whatever_the_order_all_are_answered_within_the_budget(size: int, order: list[tuple[int, int]]) -> None:
    FaultyEngine.reset(Plan(start_s=0.002, token_s=0.0005))
    pool = EnginePool(FaultyEngine, room=Desk(size))

    async def one(number: int, delay: int) -> bool:
        await asyncio.sleep(delay / 500)
        asked = GenerationRequest([{"role": "user", "content": "abc"}], max_tokens=4, stream=True)
        deltas = [delta async for delta in pool.agenerate(MODELS[number], asked)]
        return "".join(delta.text for delta in deltas) == text_of(range(3, 7)) and deltas[-1].model == "abc"[number]

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(one(*each) for each in order))

    try:
        assert all(asyncio.run(asyncio.wait_for(all_of_them(), 60)))
        assert FaultyEngine.most * 2 <= size
    finally:
        pool.close()
    assert +FaultyEngine.alive == Counter()


@SLOW
@given(
    deaths=st.lists(st.integers(0, 12), max_size=4),
    retries=st.integers(0, 4),
    tokens=st.integers(1, 12),
    stream=st.booleans(),
)
def test_whatever_dies_no_token_is_lost_or_doubled(deaths: list[int], retries: int, tokens: int, stream: bool) -> None:
    FaultyEngine.reset(Plan(deaths=list(deaths)))
    pool = EnginePool(FaultyEngine)
    asked = GenerationRequest([{"role": "user", "content": "abc"}], max_tokens=tokens, stream=stream, retries=retries)
    made: list[int] = []
    text, ended = "", None
    try:
        for delta in pool.generate(MODELS[0], asked):
            text += delta.text
            made += delta.token_ids
    except EngineDiedError as error:
        ended = error
    finally:
        pool.close()
    whole = text_of(range(3, 3 + tokens))
    if ended is None:
        assert (text, made) == (whole, list(range(3, 3 + tokens)))
    else:
        assert len(deaths) > retries
        assert whole.startswith(text)
        assert ended.partial == text


def test_a_checkpointer_that_fails_harms_no_later_question() -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    class Failing(InMemorySaver):
        fails = True

        def put(self, *arguments: Any, **named: Any) -> Any:
            if self.fails:
                raise OSError("disk full")
            return super().put(*arguments, **named)

    FaultyEngine.reset()
    pool, catalog, saver = EnginePool(FaultyEngine), Catalog(MODELS), Failing()
    builder = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool)))
    graph: Any = builder.compile(checkpointer=saver)
    run: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(OSError, match="disk full"):
        graph.invoke({"messages": [("user", "hi")]}, run, context={"max_tokens": 3})
    saver.fails = False
    assert graph.invoke({"messages": [("user", "hi")]}, run, context={"max_tokens": 3})["messages"][-1].text
    assert all(one.users == 0 for one in pool._residents._all.values())
    pool.close()
