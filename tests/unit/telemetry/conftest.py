"""A pool of talkative engines, its records, and its spans."""

from collections.abc import Iterator

import pytest

from chancellor.engines import EnginePool
from chancellor.telemetry import RequestRecord, instrument, recording
from tests.fakes import FakeEngine
from tests.unit.telemetry.tools import Otel, Talkative


@pytest.fixture
def pool(fake_engine: type[FakeEngine]) -> Iterator[EnginePool]:
    Talkative.may_start = None
    pool = EnginePool(Talkative)
    yield pool
    pool.close()


@pytest.fixture
def records() -> Iterator[list[RequestRecord]]:
    taken: list[RequestRecord] = []
    with recording(taken.append):
        yield taken


@pytest.fixture
def otel() -> Iterator[Otel]:
    otel = Otel()
    with instrument(otel.tracers, otel.meters):
        yield otel
