"""The third node: the chosen model answers."""

import contextvars
import time
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_stream_writer

from chancellor import progress
from chancellor.context import asked_of
from chancellor.conversation import messages_in, prompted
from chancellor.errors import InvalidInputError, UnknownModelError
from chancellor.handover import model_in
from chancellor.nodes.node import Node, context_of_run

__all__ = ["generation_node"]


def generation_node(models: Mapping[str, Runnable[Any, Any]]) -> Node:
    """Make the node that appends the answer to `messages`, with its usage and response metadata.

    While an engine starts, its progress goes to the custom stream.

    Args:
        models: a LangChain chat model for each name that the selection may choose: `ChatModels(catalog)`, or a dict.
            What is made of one, `model.with_retry()` or a chain, will do: it gets messages and answers with one.

    Raises:
        InvalidInputError: `models` has no names.
    """
    if not isinstance(models, Mapping):
        raise InvalidInputError(
            f"A {type(models).__name__} has no names of models.", hint='Pass e.g. {"light": ChatVLLM(model="light")}.'
        )

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
    models: Mapping[str, Runnable[Any, Any]], state: Mapping[str, Any]
) -> tuple[str, Runnable[Any, Any], list[BaseMessage], dict[str, Any]]:
    context = context_of_run()
    if (decision := state.get("decision")) is not None:
        name = model_in(decision)
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
    return name, model, messages, asked_of(context)  # the model's own settings stand otherwise


def _timed(answer: Any, model: Runnable[Any, Any], name: str, seconds: float) -> BaseMessage:
    """Note what other chat models leave out: how long they took, and what they are."""
    if isinstance(answer, str):  # of a chain that ends with a parser
        answer = AIMessage(answer)
    if not isinstance(answer, BaseMessage):
        raise InvalidInputError(
            f"The model {name!r} answered with an object of type {type(answer).__name__}, which is no message.",
            hint="Put a chat model behind this name, or a chain that ends with one.",
        )
    noted = answer.response_metadata
    if "inference_time_s" in noted:
        return answer
    kind = getattr(model, "_llm_type", type(model).__name__)  # LangChain's way to ask a chat model what it is
    more = {"engine": kind, "inference_time_s": seconds, "model_name": name}
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
