"""The fourth node: what did the answer take?"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from chancellor import resources
from chancellor.conversation import messages_of
from chancellor.nodes.node import Node
from chancellor.state import Metrics

__all__ = ["Recorder", "metrics_node"]

Recorder = Callable[[Metrics], None]
"""Takes the metrics of one answer elsewhere: a log, a counter, a database."""

logger = logging.getLogger(__name__)


def metrics_node(recorders: Iterable[Recorder] = ()) -> Node:
    """Make the node that writes `metrics`, from the answer's usage and response metadata and the system.

    A generation node of your own fills them by the keys `engine`, `quantization`, `inference_time_s` and
    `time_to_first_token_s` of its message's `response_metadata`; what is not there is None.

    Args:
        recorders: called with each answer's metrics; one that fails is logged and harms nothing.
    """
    recorders = tuple(recorders)

    def record(state: Mapping[str, Any], usage: resources.Usage) -> dict[str, Any]:
        metrics = _metrics(state, usage)
        for recorder in recorders:
            try:
                recorder(metrics)
            except Exception:
                logger.exception("A metrics recorder failed")
        return {"metrics": metrics}

    def run(state: Mapping[str, Any], _: RunnableConfig | None) -> dict[str, Any]:
        return record(state, resources.measure())

    async def arun(state: Mapping[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
        if recorders:  # they may well write to a disk or a network
            return await asyncio.to_thread(run, state, config)
        return record(state, await resources.ameasure())

    return Node("record_metrics", run, arun)


def _metrics(state: Mapping[str, Any], usage: resources.Usage) -> Metrics:
    messages = messages_of(state.get("messages") or [])
    answer = next((message for message in reversed(messages) if isinstance(message, AIMessage)), None)
    tokens: Mapping[str, Any] = (answer.usage_metadata if answer else None) or {}
    noted: Mapping[str, Any] = answer.response_metadata if answer else {}
    seconds, produced = noted.get("inference_time_s"), tokens.get("output_tokens")
    return Metrics(
        engine=noted.get("engine"),
        quantization=noted.get("quantization"),
        inference_time_s=seconds,
        time_to_first_token_s=noted.get("time_to_first_token_s"),
        input_tokens=tokens.get("input_tokens"),
        output_tokens=produced,
        tokens_per_s=produced / seconds if produced is not None and seconds else None,
        process_memory_mib=usage.process_memory_mib,
        gpu_memory_mib=usage.gpu_memory_mib,
        gpu_utilization=usage.gpu_utilization,
        fallbacks=list(noted.get("fallbacks") or ()),
    )
