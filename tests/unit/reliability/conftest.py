"""Pools of engines that fail as they are told."""

from collections.abc import Iterator

import pytest

from chancellor.engines import EnginePool
from tests.faulty import Desk, FaultyEngine, Plan


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    FaultyEngine.reset()
    pool = EnginePool(FaultyEngine)
    yield pool
    pool.close()
    FaultyEngine.reset()


@pytest.fixture
def narrow() -> Iterator[EnginePool]:
    FaultyEngine.reset(Plan(start_s=0.05))
    pool = EnginePool(FaultyEngine, room=Desk(3))
    yield pool
    pool.close()
    FaultyEngine.reset()
