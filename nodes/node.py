"""The form our nodes have: one Runnable for sync and async, so that `invoke` and `ainvoke` both work."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import get_runtime
from pydantic import BaseModel

from chancellor.context import Context

__all__ = ["Node", "context_of_run"]

Update = dict[str, Any]


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

    def __call__(self, state: Any, config: RunnableConfig | None = None) -> Update:
        """Run the node outside a graph."""
        return self._run(_mapping(state), config)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:  # noqa: A002, ARG002 - Runnable's signature
        return self._run(_mapping(input), config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:  # noqa: A002, ARG002 - Runnable's signature
        if self._arun is None:
            return self._run(_mapping(input), config)
        return await self._arun(_mapping(input), config)


def _mapping(state: Any) -> Mapping[str, Any]:
    """Return a state as a mapping: in somebody's graph it may be a dataclass, a pydantic model, or but the messages."""
    if isinstance(state, Mapping):
        return state
    if is_dataclass(state):
        return {field.name: getattr(state, field.name) for field in fields(state)}
    return dict(state) if isinstance(state, BaseModel) else {"messages": state}


def context_of_run() -> Context:
    """Return the context of the running graph; the defaults outside of one, or where it is another graph's."""
    try:
        runtime = get_runtime()
    except (RuntimeError, KeyError):
        return Context()
    # Inside of a runnable that no graph runs there is a config, but no runtime.
    return Context.of(getattr(runtime, "context", None))
