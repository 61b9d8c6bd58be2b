"""Any LangChain chat model and any compiled graph as a target, also those that are not ours."""

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage

from chancellor.bench.targets.base import Ask, Reply, Stopwatch, Target
from chancellor.errors import BenchmarkError

__all__ = ["ChatModelTarget", "CompiledGraphTarget", "ask_chat_model", "ask_graph"]

_PARAMETERS: Final = ("max_tokens", "temperature", "seed")


class ChatModelTarget(Target):
    """A chat model that is ready to be called."""

    def __init__(self, model: BaseChatModel, *, name: str | None = None) -> None:
        self.model = model
        self.name = name or type(model).__name__

    @property
    def detail(self) -> str:
        return f"chat model: {self.model.get_name()}"

    async def start(self) -> None:
        """Nothing has to be started."""

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        return await ask_chat_model(self.model, ask, stopwatch, {name: getattr(ask, name) for name in _PARAMETERS})

    async def close(self) -> None:
        """Nothing was started."""


class CompiledGraphTarget(Target):
    """A compiled graph with `messages` in its state: the Chancellor's with nodes of yours, or another agent."""

    def __init__(self, graph: Any, *, name: str | None = None, context: Any = None) -> None:
        self.graph, self.context = graph, context
        self.name = name or str(getattr(graph, "name", None) or "graph")

    @property
    def detail(self) -> str:
        return f"compiled graph: {', '.join(node for node in self.graph.nodes if not node.startswith('__'))}"

    async def start(self) -> None:
        """Engines start with the warm-up."""

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        return await ask_graph(self.graph, ask, stopwatch, self.context)

    async def close(self) -> None:
        """Its engines belong to whoever made the graph."""


async def ask_chat_model(model: BaseChatModel, ask: Ask, stopwatch: Stopwatch, parameters: Mapping[str, Any]) -> Reply:
    """Answer with a chat model, streaming if that was asked for."""
    if not ask.stream:
        return _reply(await model.ainvoke(ask.messages, **parameters))
    text: list[str] = []
    last: Any = None
    async for chunk in model.astream(ask.messages, **parameters):
        stopwatch.piece()
        text.append(str(chunk.text))
        if last is None or chunk.usage_metadata:
            last = chunk
    return _reply(last, "".join(text))


async def ask_graph(graph: Any, ask: Ask, stopwatch: Stopwatch, context: Any) -> Reply:
    """Answer with a compiled graph, to the end of its last node."""
    if not ask.stream:
        state = await graph.ainvoke({"messages": ask.messages}, context=context)
        return _reply(state["messages"][-1])
    text: list[str] = []
    last: Any = None
    async for chunk, _ in graph.astream({"messages": ask.messages}, context=context, stream_mode="messages"):
        stopwatch.piece()
        text.append(str(chunk.text))
        if last is None or chunk.usage_metadata:
            last = chunk
    return _reply(last, "".join(text))


def _reply(message: Any, text: str | None = None) -> Reply:
    if not isinstance(message, AIMessage):
        raise BenchmarkError("The answer holds no message of a model.", hint="The graph has to append one.")
    usage: Mapping[str, Any] = message.usage_metadata or {}
    noted = message.response_metadata
    return Reply(
        str(message.text) if text is None else text,
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        (usage.get("input_token_details") or {}).get("cache_read"),
        noted.get("time_to_first_token_s"),
        noted.get("queue_time_s"),
    )
