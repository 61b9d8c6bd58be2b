"""Fixtures of the endpoint's tests."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio

from chancellor.engines import EnginePool
from tests.serving import Server, app_of, client_of, pooled


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
