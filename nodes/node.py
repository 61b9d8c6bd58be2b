"""The form our nodes have: one Runnable for sync and async, so that `invoke` and `ainvoke` both work."""

import copy
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any, Final, Self

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import get_runtime
from pydantic import BaseModel

from chancellor.context import Context, carried_in

__all__ = ["Node", "context_of_run"]

Update = dict[str, Any]
_schema: Final[ContextVar[type[Context]]] = ContextVar("chancellor_context_schema", default=Context)


class Node(Runnable[Any, Update]):
    """A node from a function of the state, and an async twin where the work waits for something."""

    def __init__(
        self,
        name: str,
        run: Callable[[Mapping[str, Any], RunnableConfig | None], Update],
        arun: Callable[[Mapping[str, Any], RunnableConfig | None], Awaitable[Update]] | None = None,
    ) -> None:
        self.name = name
        self._run = run
        self._arun = arun
        self._schema = Context

    def within(self, schema: type[Context]) -> Self:
        """Return this node for a graph whose context is a subclass of ours."""
        made = copy.copy(self)
        made._schema = schema  # noqa: SLF001 - its own
        return made

    def __call__(self, state: Any, config: RunnableConfig | None = None) -> Update:
        """Run the node outside a graph."""
        return self.invoke(state, config)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:  # noqa: A002, ARG002 - Runnable's signature
        with _within(self._schema):
            return self._run(_mapping(input), config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:  # noqa: A002, ARG002 - Runnable's signature
        with _within(self._schema):
            if self._arun is None:
                return self._run(_mapping(input), config)
            return await self._arun(_mapping(input), config)


@contextmanager
def _within(schema: type[Context]) -> Iterator[None]:
    """Let `context_of_run` know the context of the node's graph."""
    token = _schema.set(schema)
    try:
        yield
    finally:
        _schema.reset(token)


def _mapping(state: Any) -> Mapping[str, Any]:
    """Return a state as a mapping: in somebody's graph it may be a dataclass, a pydantic model, or but the messages."""
    if isinstance(state, Mapping):
        return state
    if is_dataclass(state):
        return {field.name: getattr(state, field.name) for field in fields(state)}
    return dict(state) if isinstance(state, BaseModel) else {"messages": state}


def context_of_run() -> Context:
    """Return the context of the running graph; the defaults outside of one, or where it is another graph's.

    Raises:
        InvalidContextError: it is nobody's, or what it carries for us is not valid.
    """
    try:
        runtime = get_runtime()
    except (RuntimeError, KeyError):
        return Context()
    # Inside of a runnable that no graph runs there is a config, but no runtime.
    given, schema = getattr(runtime, "context", None), _schema.get()
    if schema is not Context and not isinstance(given, Context) and isinstance(ours := carried_in(given), Mapping):
        return schema(**ours)
    return Context.of(given)
