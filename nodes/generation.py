"""The third node: the chosen model answers."""

import contextvars
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer

from chancellor import progress
from chancellor.context import Context
from chancellor.errors import UnknownModelError
from chancellor.nodes.node import Node, context_of_run

__all__ = ["generation_node"]

_PARAMETERS = ("temperature", "max_tokens", "seed")


def generation_node(models: Mapping[str, BaseChatModel]) -> Node:
    """Make the node that appends the answer to `messages`, with its usage and response metadata.

    While an engine starts, its progress goes to the custom stream.

    Args:
        models: a LangChain chat model for each name that the selection may choose: `ChatModels(catalog)`, or a dict.
    """

    def run(state: Mapping[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
        model, messages, parameters = _call(models, state)
        with progress.listening(_listener(state)):
            return {"messages": [model.invoke(messages, config, **parameters)]}

    async def arun(state: Mapping[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
        model, messages, parameters = _call(models, state)
        with progress.listening(_listener(state)):
            return {"messages": [await model.ainvoke(messages, config, **parameters)]}

    return Node("generate", run, arun)


def _call(
    models: Mapping[str, BaseChatModel], state: Mapping[str, Any]
) -> tuple[BaseChatModel, list[BaseMessage], dict[str, Any]]:
    name, context = state["decision"]["model"], context_of_run()
    try:
        model = models[name]
    except KeyError:
        raise UnknownModelError(
            f"The selection chose {name!r}, which the generation node does not have.",
            hint=f"It has: {', '.join(models) or 'none'}.",
        ) from None
    messages = list(state["messages"])
    if context.system_prompt is not None:
        messages.insert(0, SystemMessage(context.system_prompt))
    # Only what the run asks for: the model's own settings stand otherwise.
    asked = {
        name: getattr(context, name)
        for name in _PARAMETERS
        if name in context.model_fields_set or getattr(context, name) != Context.model_fields[name].default
    }
    return model, messages, asked


def _listener(state: Mapping[str, Any]) -> progress.Listener:
    """Pass on what this run's own model reports."""
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError, AttributeError):  # outside of a graph
        return lambda _: None
    name, context = state["decision"]["model"], contextvars.copy_context()

    def listen(step: progress.Progress) -> None:
        if step["model"] == name:
            # The writer looks up its run in the context, and an engine starts in one of its own.
            context.copy().run(write, step)

    return listen
