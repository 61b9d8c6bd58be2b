"""Any LangChain chat model and any compiled graph as a target, also those that are not ours."""

from collections.abc import Mapping
from typing import Any

import psutil
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage

from chancellor.bench.targets.base import Ask, Reply, Stopwatch, Target
from chancellor.chat import ChatVLLM
from chancellor.context import Context
from chancellor.errors import BenchmarkError

__all__ = ["ChatModelTarget", "CompiledGraphTarget", "ask_chat_model", "ask_graph"]


class ChatModelTarget(Target):
    """A chat model that is ready to be called."""

    def __init__(self, model: BaseChatModel, *, name: str | None = None) -> None:
        self.model = model
        self.name = name or type(model).__name__
        self._ours = isinstance(model, ChatVLLM)
        self.fixed_length = self._ours
        self.started_here = False

    @property
    def detail(self) -> str:
        return f"chat model: {self.model.get_name()}"

    async def start(self) -> None:
        await self.send(_HELLO, Stopwatch())  # what starts on first use starts now

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        parameters: dict[str, Any] = {"max_tokens": ask.max_tokens, "temperature": ask.temperature}
        if self._ours:
            parameters |= {"seed": ask.seed, "ignore_eos": ask.ignore_eos}
        return await ask_chat_model(self.model, ask, stopwatch, parameters, every_chunk=self._ours)

    def processes(self) -> list[int] | None:
        return _descendants() if self._ours else None

    async def close(self) -> None:
        """Its engine belongs to whoever made the model."""


class CompiledGraphTarget(Target):
    """A compiled graph with `messages` in its state: the Chancellor's with nodes of yours, or another agent.

    Its memory is that of this program and all its children.
    """

    fixed_length = False
    started_here = False

    def __init__(self, graph: Any, *, name: str | None = None, context: Any = None) -> None:
        """Take the graph; without a context, one of the Chancellor's gets the request's settings."""
        self.graph, self.context = graph, context
        self.name = name or str(getattr(graph, "name", None) or "graph")
        schema = getattr(getattr(graph, "builder", None), "context_schema", None)
        self._ours = context is None and isinstance(schema, type) and issubclass(schema, Context)

    @property
    def detail(self) -> str:
        return f"compiled graph: {', '.join(node for node in self.graph.nodes if not node.startswith('__'))}"

    async def start(self) -> None:
        await self.send(_HELLO, Stopwatch())  # what starts on first use starts now

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        context = self.context
        if self._ours:
            context = Context(max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed)
        return await ask_graph(self.graph, ask, stopwatch, context)

    def processes(self) -> list[int] | None:
        return _descendants()

    async def close(self) -> None:
        """Its engines belong to whoever made the graph."""


_HELLO = Ask([{"role": "user", "content": "Hello"}], 1, ignore_eos=False, stream=False, seed=0)


async def ask_chat_model(
    model: BaseChatModel, ask: Ask, stopwatch: Stopwatch, parameters: Mapping[str, Any], *, every_chunk: bool = False
) -> Reply:
    """Answer with a chat model, streaming if that was asked for.

    Args:
        model: the chat model.
        ask: the request.
        stopwatch: notes the pieces.
        parameters: passed to the model.
        every_chunk: whether every chunk holds tokens; other models send empty ones around them.
    """
    if not ask.stream:
        return _reply([await model.ainvoke(ask.messages, **parameters)])
    chunks: list[BaseMessage] = []
    async for chunk in model.astream(ask.messages, **parameters):
        if every_chunk or _has_tokens(chunk):
            stopwatch.piece()
        chunks.append(chunk)
    return _reply(chunks)


async def ask_graph(graph: Any, ask: Ask, stopwatch: Stopwatch, context: Any, *, every_chunk: bool = False) -> Reply:
    """Answer with a compiled graph, to the end of its last node; arguments as above."""
    if not ask.stream:
        state = await graph.ainvoke({"messages": ask.messages}, context=context)
        return _reply(state["messages"][len(ask.messages) :])
    chunks: list[BaseMessage] = []
    async for chunk, _ in graph.astream({"messages": ask.messages}, context=context, stream_mode="messages"):
        if every_chunk or _has_tokens(chunk):
            stopwatch.piece()
        chunks.append(chunk)
    return _reply(chunks)


def _has_tokens(chunk: BaseMessage) -> bool:
    if not isinstance(chunk, AIMessage):  # an agent's stream has the results of its tools too
        return False
    return bool(chunk.content or getattr(chunk, "tool_call_chunks", None) or chunk.additional_kwargs)


def _reply(messages: list[BaseMessage]) -> Reply:
    """Put together what the model's messages say; an agent may have called it several times."""
    answers = [message for message in messages if isinstance(message, AIMessage)]
    if not answers:
        raise BenchmarkError("The answer holds no message of a model.", hint="The graph has to append one.")
    usages = [usage for message in answers if (usage := message.usage_metadata)]
    noted = answers[-1].response_metadata
    cached = [read for usage in usages if (read := usage.get("input_token_details", {}).get("cache_read")) is not None]
    return Reply(
        "".join(str(message.text) for message in answers),
        sum(usage["input_tokens"] for usage in usages) if usages else None,
        sum(usage["output_tokens"] for usage in usages) if usages else None,
        sum(cached) if cached else None,
        noted.get("time_to_first_token_s"),
        noted.get("queue_time_s"),
    )


def _descendants() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]
