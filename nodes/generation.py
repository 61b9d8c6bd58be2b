"""The third node: the chosen model answers."""

import contextvars
import time
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer

from chancellor import progress
from chancellor.context import Context
from chancellor.conversation import messages_in, prompted
from chancellor.errors import InvalidInputError, UnknownModelError
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
        name, model, messages, parameters = _call(models, state)
        with progress.listening(_listener(name)):
            began = time.perf_counter()
            answer = model.invoke(messages, config, **parameters)
        return {"messages": [_timed(answer, model, name, time.perf_counter() - began)]}

    async def arun(state: Mapping[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
        name, model, messages, parameters = _call(models, state)
        with progress.listening(_listener(name)):
            began = time.perf_counter()
            answer = await model.ainvoke(messages, config, **parameters)
        return {"messages": [_timed(answer, model, name, time.perf_counter() - began)]}

    return Node("generate", run, arun)


def _call(
    models: Mapping[str, BaseChatModel], state: Mapping[str, Any]
) -> tuple[str, BaseChatModel, list[BaseMessage], dict[str, Any]]:
    context = context_of_run()
    if (decision := state.get("decision")) is not None:
        name = decision["model"]
    elif context.model is not None or len(models) == 1:  # in somebody's graph without a selection
        name = context.model or next(iter(models))
    else:
        raise InvalidInputError(
            "The state has no decision, so that the generation node does not know which of its models to take.",
            hint="Put selection_node before it, name one by context.model, or give it a single model.",
        )
    by_name = getattr(models, "named", None) if context.model is not None else None
    try:
        model = models[name] if by_name is None else by_name(name)
    except KeyError:
        raise UnknownModelError(
            f"The selection chose {name!r}, which the generation node does not have.",
            hint=f"It has: {', '.join(models) or 'none'}.",
        ) from None
    messages = prompted(messages_in(state), context.system_prompt)
    # Only what the run asks for: the model's own settings stand otherwise.
    asked = {
        name: getattr(context, name)
        for name in _PARAMETERS
        if name in context.model_fields_set or getattr(context, name) != Context.model_fields[name].default
    }
    return name, model, messages, asked


def _timed(answer: BaseMessage, model: BaseChatModel, name: str, seconds: float) -> BaseMessage:
    """Note what other chat models leave out: how long they took, and what they are."""
    noted = answer.response_metadata
    if "inference_time_s" in noted:
        return answer
    more = {"engine": model._llm_type, "inference_time_s": seconds, "model_name": name}  # noqa: SLF001 - LangChain's way to ask
    return answer.model_copy(update={"response_metadata": {**noted, **more}})


def _listener(name: str) -> progress.Listener:
    """Pass on what this run's own model reports, and one that answers in its place."""
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError, AttributeError):  # outside of a graph
        return lambda _: None
    context, names = contextvars.copy_context(), {name}

    def listen(step: progress.Progress) -> None:
        if step["model"] in names:
            names.add(step.get("substitute", name))
            # The writer looks up its run in the context, and an engine starts in one of its own.
            context.copy().run(write, step)

    return listen
