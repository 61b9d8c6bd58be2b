"""Which model answers a conversation: what is known of each, which may be taken, and which one is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, MessageLikeRepresentation, ToolMessage
from langchain_core.tools import BaseTool

from chancellor.analyzers import Analyzer
from chancellor.approval import approves
from chancellor.catalog import Catalog, ModelSpec
from chancellor.context import Context
from chancellor.conversation import messages_of, prompted
from chancellor.errors import (
    CheckpointError,
    EmptyQuestionError,
    MissingDependencyError,
    NoEligibleModelError,
    PromptTooLongError,
)
from chancellor.handover import checked
from chancellor.policies import Choice, Policy, policy_of
from chancellor.quantization.prepare import parameters_of
from chancellor.state import Candidate, Complexity, Decision
from chancellor.tokens import Estimate, estimate
from chancellor.window import window_of

__all__ = ["Router", "complexity_of", "task_of"]

_ANSWER_SHARE: Final = 4
"""An answer is left the room of its most tokens, but not more than the context over this."""
_TOO_LONG: Final = "which is too much for its context of"


def task_of(messages: MessageLikeRepresentation | Sequence[MessageLikeRepresentation]) -> str:
    """Return the text that says how hard the work is: the user's newest that is more than a word of approval.

    "Yes, go on" is as hard as what it approves. System prompts, the models' own texts and LangChain's summaries do not
    count.

    Args:
        messages: in any form that LangChain takes.

    Returns:
        The text; an empty one where there is none: the user has shown an image, say, or what was approved has gone
        into a summary.

    Raises:
        EmptyQuestionError: there is no message of the user's, or the newest is blank.
        InvalidInputError: these are no messages.
    """
    human = [message for message in messages_of(messages) if message.type == "human"]
    if not human:
        raise EmptyQuestionError("The conversation holds no human message.")
    own = [message for message in human if _users(message)]
    if own and _blank(own[-1]):
        raise EmptyQuestionError("The question is empty.")
    texts = [text for message in reversed(own) if (text := str(message.text)).strip()]
    if (task := next((text for text in texts if not approves(text)), None)) is not None:
        return task
    # A word of approval is all there is: nothing that it could approve, unless a summary has it.
    return texts[0] if texts and len(own) == len(human) else ""


def complexity_of(
    messages: MessageLikeRepresentation | Sequence[MessageLikeRepresentation], analyze: Analyzer
) -> Complexity:
    """Return how hard the work is, by its text: medium where there is none.

    Args:
        messages: in any form that LangChain takes.
        analyze: from the text to its complexity.

    Raises:
        EmptyQuestionError: there is no message of the user's, or the newest is blank.
        InvalidInputError: these are no messages, or what the analyzer returns is no complexity.
    """
    if text := task_of(messages):
        return checked(analyze(text))
    return Complexity(level="medium", probability=None, reasons=["no text says what the work is"], analyzer="none")


def _users(message: BaseMessage) -> bool:
    """Return whether the user wrote it: what LangChain has in their name says so, as SummarizationMiddleware's does."""
    return message.type == "human" and "lc_source" not in message.additional_kwargs


def _blank(message: BaseMessage) -> bool:
    """Return whether there is nothing in it: neither text nor an image, say."""
    if str(message.text).strip():
        return False
    content = message.content
    return isinstance(content, str) or all(isinstance(one, str) or one.get("type") == "text" for one in content)


class Router:
    """Chooses a model of a catalog for each conversation.

    Args:
        catalog: the models to choose from.
        policy: a name of `chancellor.policies` or a function; None takes the one that the run's context names.
        start_s: returns how long it takes until a model can answer: an EnginePool's `start_s`.

    Raises:
        UnknownChoiceError: no policy has this name.
    """

    def __init__(
        self,
        catalog: Catalog,
        policy: str | Policy | None = None,
        start_s: Callable[[ModelSpec], float | None] | None = None,
    ) -> None:
        self.catalog = catalog
        self._start_s = start_s
        self._policy = policy
        self._fixed = policy_of(policy) if isinstance(policy, str) else policy
        self._parameters: dict[str, int] = {}
        self._windows: dict[str, int | None] = {}

    @property
    def ready(self) -> bool:
        """Whether a decision reads nothing more from disk."""
        return all(
            (spec.name in self._parameters and spec.name in self._windows) or self.catalog.rejection(spec) is not None
            for spec in self.catalog.values()
        )

    def decide(
        self,
        messages: Sequence[MessageLikeRepresentation],
        complexity: Complexity,
        context: Context,
        before: Mapping[str, Any] | None = None,
        tools: Sequence[BaseTool | dict[str, Any]] = (),
    ) -> Decision:
        """Return which model answers next.

        A model that has called tools goes on with their results, whatever they look like: its work is done with an
        answer that calls none, or when the user writes again.

        Args:
            messages: the conversation so far, in any form that LangChain takes.
            complexity: of the work.
            context: of the run; its system prompt and its longest answer take room as well.
            before: the decision for the previous step, if it is known.
            tools: what the model is told that it may call.

        Raises:
            InvalidInputError: these are no messages.
            PromptTooLongError: the conversation fits into no model's context.
            NoEligibleModelError: no model may be used.
            ModelRejectedError: the one that the context names may not be used.
        """
        conversation = messages_of(messages)
        tokens = estimate(prompted(conversation, context.system_prompt), tools)
        candidates = self._candidates(tokens, context.max_tokens)
        held = self._held(conversation, before)
        if context.model is not None:
            chosen, name = Choice(self.catalog.usable(context.model).name, "asked for by name"), "by name"
        elif held is not None and any(one["model"] == held and one["eligible"] for one in candidates):
            chosen, name = Choice(held, "it goes on with its tools' results"), "held"
        else:
            chosen = _choose(self._fixed or policy_of(context.policy), complexity, candidates)
            name = context.policy if self._policy is None else _name(self._policy)
        for candidate in candidates:
            if candidate["model"] == chosen.model:
                candidate["reason"] = f"chosen: {chosen.reason}"
        return Decision(
            model=chosen.model,
            trinity_score=self.catalog[chosen.model].trinity_score,
            policy=name,
            reason=chosen.reason,
            candidates=candidates,
        )

    def _held(self, messages: Sequence[BaseMessage], before: Mapping[str, Any] | None) -> str | None:
        """Return the model whose call has a result now: as its message says, for a substitute may have made it."""
        place = next((at for at in range(len(messages) - 1, -1, -1) if isinstance(messages[at], AIMessage)), None)
        caller = None if place is None else messages[place]
        if place is None or not isinstance(caller, AIMessage) or not caller.tool_calls:
            return None
        after = messages[place + 1 :]
        results = [at for at, one in enumerate(after) if isinstance(one, ToolMessage)]
        # Not every turn ends with an answer: a tool may return directly, or be the answer's form, or the run may die.
        if not results or any(_users(one) for one in after[results[-1] :]):
            return None
        if (name := caller.response_metadata.get("model_name")) in self.catalog:
            return str(name)
        return str(before["model"]) if isinstance(before, Mapping) and "model" in before else None

    def _candidates(self, tokens: Estimate, answer: int) -> list[Candidate]:
        self.catalog.eligible()  # an empty catalog, or one with every model rejected, is an error of its own
        for room in (answer, 1):  # a short answer is better than none
            candidates = [self._candidate(spec, tokens.most, room) for spec in self.catalog.values()]
            if any(candidate["eligible"] for candidate in candidates):
                return candidates
        # Nothing is refused that may fit after all: the model with the most room will see.
        candidates = [self._candidate(spec, tokens.fewest, 1) for spec in self.catalog.values()]
        windows = {one["model"]: self._window(self.catalog[one["model"]]) or 0 for one in candidates if one["eligible"]}
        longest = max(windows.values(), default=0)
        for candidate in candidates:
            if (window := windows.get(candidate["model"], longest)) < longest:
                candidate["eligible"] = False
                candidate["reason"] = f"rejected: {_too_long(tokens.most, window)}"
        return candidates

    def _candidate(self, spec: ModelSpec, tokens: int, answer: int) -> Candidate:
        reason = self.catalog.rejection(spec)
        if reason is None and spec.name not in self._parameters:
            try:
                count = parameters_of(spec)
            except (CheckpointError, MissingDependencyError) as error:
                reason = error.message
            else:
                if count is not None:
                    self._parameters[spec.name] = count
        window = self._window(spec) if reason is None else None
        if window is not None and tokens + min(answer, window // _ANSWER_SHARE) > window:
            reason = _too_long(tokens, window)
        candidate = Candidate(
            model=spec.name,
            trinity_score=spec.trinity_score,
            tier=spec.tier,
            parameters=self._parameters.get(spec.name),
            eligible=reason is None,
            reason="passed over" if reason is None else f"rejected: {reason}",
        )
        if self._start_s is not None:
            candidate["start_s"] = self._start_s(spec)
        return candidate

    def _window(self, spec: ModelSpec) -> int | None:
        if spec.name in self._windows:
            return self._windows[spec.name]
        window = window_of(spec)
        if window.certain:
            self._windows[spec.name] = window.tokens
        return window.tokens


def _too_long(tokens: int, window: int) -> str:
    return f"the conversation has about {tokens:,} tokens, {_TOO_LONG} {window:,}"


def _name(policy: str | Policy) -> str:
    return policy if isinstance(policy, str) else getattr(policy, "__name__", type(policy).__name__)


def _choose(policy: Policy, complexity: Complexity, candidates: list[Candidate]) -> Choice:
    eligible = [candidate for candidate in candidates if candidate["eligible"]]
    if not eligible:
        reasons = "; ".join(f"{candidate['model']}: {candidate['reason']}" for candidate in candidates)
        if _TOO_LONG in reasons:
            raise PromptTooLongError(f"The conversation is too long for every model that might answer it ({reasons}).")
        raise NoEligibleModelError(f"No model of the catalog can be used ({reasons or 'it is empty'}).")
    return policy(complexity, eligible)
