"""The graph's state: plain JSON beside the messages, so that every checkpointer can keep it."""

from typing import Annotated, Literal, NotRequired

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from chancellor.fallbacks import Fallback

__all__ = ["Candidate", "Complexity", "Decision", "Fallback", "Level", "Metrics", "State"]

Level = Literal["low", "medium", "high"]


class Complexity(TypedDict):
    """What an analyzer thinks of the question."""

    level: Level
    probability: float | None
    """The analyzer's estimate that a strong model is needed, from 0 to 1; None if it has none."""
    reasons: list[str]
    analyzer: str


class Candidate(TypedDict):
    """One model of the catalog, as the selection saw it."""

    model: str
    trinity_score: float
    tier: str | None
    parameters: int | None
    """Number of parameters, read from the checkpoint; None where it is not on this machine."""
    eligible: bool
    reason: str
    """Why it was chosen, passed over, or rejected."""
    start_s: NotRequired[float | None]
    """Seconds until it can answer: 0 if its engine runs, else what its last start took, with stopping others to make
    room; None where that is not known."""


class Decision(TypedDict):
    """Which model answers, and why."""

    model: str
    trinity_score: float
    policy: str
    reason: str
    candidates: list[Candidate]


class Metrics(TypedDict):
    """What one answer took. None stands for what could not be read, never 0."""

    engine: str | None
    quantization: str | None
    inference_time_s: float | None
    """Seconds from handing the request to the engine to its last token; starting an engine is not in it."""
    time_to_first_token_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    tokens_per_s: float | None
    """Output tokens over inference time."""
    process_memory_mib: float | None
    """Resident memory of this process and its children, the engines among them, in MiB."""
    gpu_memory_mib: float | None
    """Memory in use on the visible GPUs, in MiB."""
    gpu_utilization: float | None
    """Mean utilisation of the visible GPUs, from 0 to 1."""
    fallbacks: list[Fallback]
    """What was done because something failed, in order; empty if nothing did."""


class State(TypedDict):
    """State of the Chancellor graph. Subclass it to add fields of your own."""

    messages: Annotated[list[AnyMessage], add_messages]
    """The conversation. The question is its newest human message; the answer is appended."""
    complexity: NotRequired[Complexity]
    """Written by `analyze_complexity`."""
    decision: NotRequired[Decision]
    """Written by `select_model`."""
    metrics: NotRequired[Metrics]
    """Written by `record_metrics`."""
