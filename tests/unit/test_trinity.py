import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chancellor.trinity import WEIGHTS, Balance, Pillars

score = st.floats(min_value=0, max_value=100)


def pillars(**changes: float) -> Pillars:
    return Pillars(**{**dict.fromkeys(WEIGHTS, 95.0), **changes})


def test_weights_sum_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


def test_score_is_the_weighted_sum() -> None:
    made = pillars(truth=100, goodness=80, beauty=60, serenity=40, eternity=20)
    assert made.score == pytest.approx(0.35 * 100 + 0.35 * 80 + 0.20 * 60 + 0.08 * 40 + 0.02 * 20)


def test_five_pillars_at_the_minimum_reach_it() -> None:
    assert pillars().score >= 95.0


@given(st.lists(score, min_size=5, max_size=5))
def test_score_lies_between_the_lowest_and_the_highest_pillar(values: list[float]) -> None:
    made = Pillars(**dict(zip(WEIGHTS, values, strict=True)))
    assert min(values) - 1e-5 <= made.score <= max(values) + 1e-5


@pytest.mark.parametrize(
    ("lowest", "balance"),
    [(70.5, Balance.BALANCED), (70, Balance.WARNING), (50.5, Balance.WARNING), (50, Balance.IMBALANCED)],
)
def test_balance_by_the_distance_of_the_pillars(lowest: float, balance: Balance) -> None:
    assert pillars(truth=100, beauty=lowest).balance is balance


@pytest.mark.parametrize("bad", [-1, 100.1, float("nan"), float("inf"), "many"])
def test_out_of_range_is_refused(bad: object) -> None:
    with pytest.raises(ValidationError):
        pillars(truth=bad)  # type: ignore[arg-type]
