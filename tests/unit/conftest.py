"""Fixtures of the endpoint's tests, and how all tests here draw their examples."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from chancellor.engines import EnginePool
from tests.serving import Server, app_of, client_of, pooled

# A machine that stands still for a moment makes no test wrong, and each run draws the same examples.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture
def serving_pool() -> Iterator[EnginePool]:
    """Scripted engines, their counters at zero."""
    with pooled() as pool:
        yield pool


@pytest_asyncio.fixture
async def client(serving_pool: EnginePool) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the endpoint with its usual options, inside of this process."""
    async with client_of(app_of(serving_pool)) as client:
        yield client


@pytest.fixture
def server(serving_pool: EnginePool) -> Iterator[Server]:
    """The endpoint behind a real socket."""
    with Server(app_of(serving_pool)) as server:
        yield server
