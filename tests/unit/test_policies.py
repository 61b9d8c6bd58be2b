import pytest
from hypothesis import given
from hypothesis import strategies as st

from chancellor.errors import UnknownChoiceError
from chancellor.policies import POLICIES, policy_of, trinity
from chancellor.state import Candidate, Complexity, Level


def candidate(name: str, score: float = 96.0, parameters: int | None = None, tier: str | None = None) -> Candidate:
    return Candidate(model=name, trinity_score=score, tier=tier, parameters=parameters, eligible=True, reason="")


def complexity(level: Level) -> Complexity:
    return Complexity(level=level, probability=None, reasons=[], analyzer="test")


SMALL, MIDDLE, LARGE = candidate("z-small", 96, 10), candidate("middle", 99, 20), candidate("a-large", 97, 30)


@pytest.mark.parametrize(("level", "model"), [("low", "z-small"), ("medium", "middle"), ("high", "a-large")])
def test_parameter_counts_decide_not_names(level: Level, model: str) -> None:
    assert trinity(complexity(level), [LARGE, SMALL, MIDDLE]).model == model


def test_a_tier_beats_the_parameter_count() -> None:
    light = candidate("big-but-light", 96, 100, "light")
    strong = candidate("tiny-but-strong", 96, 1, "strong")
    assert trinity(complexity("low"), [SMALL, LARGE, light, strong]).model == "big-but-light"
    assert trinity(complexity("high"), [SMALL, LARGE, light, strong]).model == "tiny-but-strong"


def test_ties_go_to_the_score_then_to_the_name() -> None:
    same = [candidate("c", 96, 5), candidate("b", 98, 5), candidate("a", 98, 5)]
    for level in ("low", "medium", "high"):
        assert trinity(complexity(level), same).model == "a"


def test_an_unknown_count_is_neither_light_nor_strong() -> None:
    unknown = candidate("a-unknown")
    assert trinity(complexity("low"), [unknown, SMALL]).model == "z-small"
    assert trinity(complexity("high"), [unknown, SMALL]).model == "z-small"


def test_always_light_and_always_strong() -> None:
    assert policy_of("light")(complexity("high"), [LARGE, SMALL]).model == "z-small"
    assert policy_of("strong")(complexity("low"), [LARGE, SMALL]).model == "a-large"
    with pytest.raises(UnknownChoiceError, match="trinity, light, strong"):
        policy_of("coin")


names = st.text("abc", min_size=1, max_size=3)
candidates = st.lists(
    st.builds(
        candidate,
        names,
        st.floats(95, 100),
        st.none() | st.integers(1, 5),
        st.sampled_from([None, "light", "standard", "strong"]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda one: one["model"],
)


@given(candidates, st.sampled_from(["low", "medium", "high"]), st.randoms())
def test_the_order_of_the_catalog_does_not_matter(models: list[Candidate], level: Level, random: object) -> None:
    shuffled = list(models)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for policy in POLICIES.values():
        first = policy(complexity(level), models)
        assert first == policy(complexity(level), shuffled)
        assert first.model in {one["model"] for one in models}
