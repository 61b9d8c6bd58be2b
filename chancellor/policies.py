"""Which of the eligible models answers a question: policies by name."""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from chancellor.errors import UnknownChoiceError
from chancellor.state import Candidate, Complexity

__all__ = ["POLICIES", "Choice", "Policy", "always_light", "always_strong", "policy_of", "trinity"]


class Choice(NamedTuple):
    """A policy's decision."""

    model: str
    reason: str


Policy = Callable[[Complexity, Sequence[Candidate]], Choice]
"""From the complexity and the eligible candidates (at least one) to a choice."""

_WEIGHT: Final = {"light": 0, None: 1, "standard": 1, "strong": 2}


def trinity(complexity: Complexity, candidates: Sequence[Candidate]) -> Choice:
    """Low complexity takes the light model, high the strong one, medium the best Trinity score.

    A model with tier "light" comes before one without a tier, and that before "strong"; within a tier the parameter
    count decides, with unknown counts last. Ties go to the higher score, then to the one that can answer sooner, then
    to the name that sorts first.
    """
    level = complexity["level"]
    if level == "low":
        return Choice(_lightest(candidates)["model"], "low complexity: the light model")
    if level == "high":
        return Choice(_strongest(candidates)["model"], "high complexity: the strong model")
    best = min(candidates, key=_by_score)
    return Choice(best["model"], "medium complexity: the best Trinity score")


def always_light(complexity: Complexity, candidates: Sequence[Candidate]) -> Choice:  # noqa: ARG001 - a Policy
    """Take the light model, whatever the question."""
    return Choice(_lightest(candidates)["model"], "the policy always takes the light model")


def always_strong(complexity: Complexity, candidates: Sequence[Candidate]) -> Choice:  # noqa: ARG001 - a Policy
    """Take the strong model, whatever the question."""
    return Choice(_strongest(candidates)["model"], "the policy always takes the strong model")


def _lightest(candidates: Sequence[Candidate]) -> Candidate:
    return min(
        candidates,
        key=lambda one: (_WEIGHT[one["tier"]], one["parameters"] or float("inf"), *_by_score(one)),
    )


def _strongest(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda one: (-_WEIGHT[one["tier"]], -(one["parameters"] or 0), *_by_score(one)))


def _by_score(candidate: Candidate) -> tuple[float, float, str]:
    start = candidate.get("start_s")
    return -candidate["trinity_score"], math.inf if start is None else start, candidate["model"]


POLICIES: Final[dict[str, Policy]] = {"trinity": trinity, "light": always_light, "strong": always_strong}


def policy_of(name: str) -> Policy:
    """Return the policy of this name.

    Raises:
        UnknownChoiceError: there is none.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise UnknownChoiceError.of("policy", name, POLICIES) from None
