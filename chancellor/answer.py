"""One question, one answer."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.graph.state import CompiledStateGraph

from chancellor.catalog import Catalog
from chancellor.context import Context
from chancellor.errors import EmptyQuestionError
from chancellor.graphs.builder import create_chancellor
from chancellor.state import Complexity, Decision, Metrics

__all__ = ["Answer", "ask", "prepare_question"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the graph made of a question."""

    response: str
    """The model's text."""
    model_used: str
    """The model that answered: where another one had to, not the one that the decision names."""
    trinity_score: float
    """Score of the model used, from 0 to 100."""
    inference_time: float | None
    """Seconds from handing the request to the engine to its last token."""
    complexity: Complexity
    decision: Decision
    metrics: Metrics

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Answer":
        """Take the answer out of the graph's final state."""
        message: BaseMessage = state["messages"][-1]
        decision: Decision = state["decision"]
        model, score = decision["model"], decision["trinity_score"]
        scores = {one["model"]: one["trinity_score"] for one in decision.get("candidates") or ()}
        if (name := message.response_metadata.get("model_name")) in scores:  # maybe a substitute's
            model, score = name, scores[name]
        return cls(
            response=str(message.text),
            model_used=model,
            trinity_score=score,
            inference_time=state["metrics"]["inference_time_s"],
            complexity=state["complexity"],
            decision=decision,
            metrics=state["metrics"],
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def ask(question: str, *, catalog: Catalog | str | Path | None = None, **context: Any) -> Answer:
    """Answer one question with the model that the graph chooses. The engine starts with the first call and stays.

    Args:
        question: the question's text.
        catalog: the models, or the path of a catalog file; None finds one as the command line does.
        **context: fields of `Context`: model, temperature, max_tokens, seed, system_prompt, policy.

    Raises:
        ChancellorError: one of its subclasses; the message says what to do.

    Example:
        >>> ask("What is 2+2?", temperature=0).response
    """
    graph, state, settings = prepare_question(question, catalog, context)
    return Answer.of(graph.invoke(state, context=settings))


def prepare_question(
    question: str, catalog: Catalog | str | Path | None, context: dict[str, Any]
) -> tuple[CompiledStateGraph[Any, Any, Any, Any], dict[str, Any], Context]:
    """Check the question and the context before anything starts; return graph, input state and context."""
    if not question.strip():
        raise EmptyQuestionError("The question is empty.", hint='Ask something, e.g. "What is 2+2?"')
    settings = Context(**context)
    models = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
    return _graph(models), {"messages": [HumanMessage(question)]}, settings


@lru_cache(maxsize=8)
def _graph(catalog: Catalog) -> CompiledStateGraph[Any, Any, Any, Any]:
    return create_chancellor(catalog).compile(name="chancellor")
