"""The second node: which model answers?"""

import asyncio
from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig

from chancellor.catalog import Catalog, ModelSpec
from chancellor.errors import CheckpointError, MissingDependencyError, NoEligibleModelError
from chancellor.nodes.node import Node, context_of_run
from chancellor.policies import Choice, Policy, policy_of
from chancellor.quantization.prepare import parameters_of
from chancellor.state import Candidate, Complexity, Decision

__all__ = ["selection_node"]


def selection_node(catalog: Catalog, policy: str | Policy | None = None) -> Node:
    """Make the node that writes `decision`: the chosen model, and each candidate with its reason.

    Args:
        catalog: the models to choose from.
        policy: a name of `chancellor.policies` or a function; None takes the policy that the run's context names.

    Raises:
        UnknownChoiceError: no policy has this name.
    """
    fixed = policy_of(policy) if isinstance(policy, str) else policy
    survey = _Survey(catalog)

    def decide(state: Mapping[str, Any], candidates: list[Candidate]) -> dict[str, Any]:
        context = context_of_run()
        if context.model is not None:
            chosen = Choice(catalog.usable(context.model).name, "asked for by name")
            name = "by name"
        else:
            chosen = _choose(fixed or policy_of(context.policy), state["complexity"], candidates)
            name = context.policy if policy is None else _name(policy)
        for candidate in candidates:
            if candidate["model"] == chosen.model:
                candidate["reason"] = f"chosen: {chosen.reason}"
        decision = Decision(
            model=chosen.model,
            trinity_score=catalog[chosen.model].trinity_score,
            policy=name,
            reason=chosen.reason,
            candidates=candidates,
        )
        return {"decision": decision}

    def run(state: Mapping[str, Any], _: RunnableConfig | None) -> dict[str, Any]:
        return decide(state, survey.candidates())

    async def arun(state: Mapping[str, Any], _: RunnableConfig | None) -> dict[str, Any]:
        # It may read headers from disk.
        return decide(state, survey.candidates() if survey.done else await asyncio.to_thread(survey.candidates))

    return Node("select_model", run, arun)


def _name(policy: str | Policy) -> str:
    return policy if isinstance(policy, str) else getattr(policy, "__name__", type(policy).__name__)


def _choose(policy: Policy, complexity: Complexity, candidates: list[Candidate]) -> Choice:
    eligible = [candidate for candidate in candidates if candidate["eligible"]]
    if not eligible:
        reasons = "; ".join(f"{candidate['model']}: {candidate['reason']}" for candidate in candidates)
        raise NoEligibleModelError(f"No model of the catalog can be used ({reasons or 'it is empty'}).")
    return policy(complexity, eligible)


class _Survey:
    """What is known of each model; the headers of a checkpoint are read once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._parameters: dict[str, int] = {}

    @property
    def done(self) -> bool:
        """Whether `candidates` reads nothing more from disk."""
        return all(
            spec.name in self._parameters or self._catalog.rejection(spec) is not None
            for spec in self._catalog.values()
        )

    def candidates(self) -> list[Candidate]:
        self._catalog.eligible()  # an empty catalog, or one with every model rejected, is an error of its own
        return [self._candidate(spec) for spec in self._catalog.values()]

    def _candidate(self, spec: ModelSpec) -> Candidate:
        reason = self._catalog.rejection(spec)
        if reason is None and spec.name not in self._parameters:
            try:
                count = parameters_of(spec)
            except (CheckpointError, MissingDependencyError) as error:
                reason = error.message
            else:
                if count is not None:
                    self._parameters[spec.name] = count
        return Candidate(
            model=spec.name,
            trinity_score=spec.trinity_score,
            tier=spec.tier,
            parameters=self._parameters.get(spec.name),
            eligible=reason is None,
            reason="passed over" if reason is None else f"rejected: {reason}",
        )
