"""Which model answers a conversation: what is known of each, which may be taken, and which one is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, MessageLikeRepresentation
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.tools import BaseTool

from chancellor.approval import approves
from chancellor.catalog import Catalog, ModelSpec
from chancellor.context import Context
from chancellor.conversation import messages_of, prompted
from chancellor.errors import CheckpointError, MissingDependencyError, NoEligibleModelError, PromptTooLongError
from chancellor.policies import Choice, Policy, policy_of
from chancellor.quantization.prepare import parameters_of
from chancellor.state import Candidate, Complexity, Decision, question_of
from chancellor.window import window_of

__all__ = ["Router", "task_of"]

_ANSWER_SHARE: Final = 4
"""An answer is left the room of its most tokens, but not more than the context over this."""
_TOO_LONG: Final = "which is too much for its context of"


def task_of(messages: MessageLikeRepresentation | Sequence[MessageLikeRepresentation]) -> str:
    """Return the text that says how hard the work is: the user's newest that is more than a word of approval.

    "Yes, go on" is as hard as what it approves. System prompts and the models' own texts do not count.

    Args:
        messages: in any form that LangChain takes.

    Raises:
        EmptyQuestionError: there is no text of the user's, or the newest is blank.
        InvalidInputError: these are no messages.
    """
    conversation = messages_of(messages)
    newest = question_of(conversation)
    for message in reversed(conversation):
        text = str(message.text)
        if message.type == "human" and text.strip() and not approves(text):
            return text
    return newest


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

        A model that has called tools goes on with their results, whatever they look like.

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
        tokens = count_tokens_approximately(prompted(conversation, context.system_prompt), tools=list(tools) or None)
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
        if not messages or messages[-1].type != "tool":
            return None
        caller = next((one for one in reversed(messages) if isinstance(one, AIMessage) and one.tool_calls), None)
        name = caller.response_metadata.get("model_name") if caller is not None else None
        if name in self.catalog:
            return str(name)
        return str(before["model"]) if before is not None else None

    def _candidates(self, tokens: int, answer: int) -> list[Candidate]:
        self.catalog.eligible()  # an empty catalog, or one with every model rejected, is an error of its own
        candidates = [self._candidate(spec, tokens, answer) for spec in self.catalog.values()]
        if any(candidate["eligible"] for candidate in candidates):
            return candidates
        # A short answer is better than none.
        return [self._candidate(spec, tokens, 1) for spec in self.catalog.values()]

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
            reason = f"the conversation has about {tokens:,} tokens, {_TOO_LONG} {window:,}"
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
