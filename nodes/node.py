"""The form our nodes have: one Runnable for sync and async, so that `invoke` and `ainvoke` both work."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import get_runtime

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

    def __call__(self, state: Mapping[str, Any], config: RunnableConfig | None = None) -> Update:
        """Run the node outside a graph."""
        return self._run(state, config)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:  # noqa: A002, ARG002 - Runnable's signature
        return self._run(input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:  # noqa: A002, ARG002 - Runnable's signature
        if self._arun is None:
            return self._run(input, config)
        return await self._arun(input, config)


def context_of_run() -> Context:
    """Return the context of the running graph; the defaults outside of one, or where it is another graph's."""
    try:
        runtime = get_runtime()
    except (RuntimeError, KeyError):
        return Context()
    # Inside of a runnable that no graph runs there is a config, but no runtime.
    return Context.of(getattr(runtime, "context", None))
