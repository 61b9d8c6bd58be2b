"""The benchmark's arithmetic, against numpy and against itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chancellor.bench.statistics import Percentiles, Ratio, median, paired_ratios, percentile

floats = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False, width=64)
samples = st.lists(floats, min_size=1, max_size=60)
shares = st.floats(min_value=0.0, max_value=1.0)
rates = st.floats(min_value=1e-3, max_value=1e6)
pairs = st.lists(st.tuples(rates, rates), min_size=1, max_size=12)


@given(samples, shares)
def test_a_percentile_is_numpys(values: list[float], share: float) -> None:
    # numpy takes a percentage: the same share within rounding, and so the same value within rounding of the range.
    tolerance = 1e-9 * (1.0 + max(map(abs, values)))
    assert percentile(values, share) == pytest.approx(float(np.percentile(values, share * 100)), abs=tolerance)


@given(samples, shares, shares)
def test_percentiles_rise_with_the_share(values: list[float], first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert percentile(values, low) <= percentile(values, high) + 1e-9 * (1.0 + max(map(abs, values)))


@given(samples, shares)
def test_a_percentile_lies_among_its_values(values: list[float], share: float) -> None:
    assert min(values) <= percentile(values, share) <= max(values)
    assert percentile(values, 0.0) == min(values)
    assert percentile(values, 1.0) == max(values)


@given(samples.flatmap(lambda values: st.tuples(st.just(values), st.permutations(values))), shares)
def test_the_order_of_the_values_does_not_matter(both: tuple[list[float], list[float]], share: float) -> None:
    values, shuffled = both
    assert percentile(values, share) == percentile(shuffled, share)
    assert Percentiles.of(values) == Percentiles.of(shuffled)


def test_a_percentile_leaves_its_argument_alone() -> None:
    values = [3.0, 1.0, 2.0]
    assert percentile(values, 0.5) == 2.0
    assert values == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], -0.01), ([1.0], 1.01), ([1.0], math.nan)])
def test_a_percentile_that_does_not_exist(values: list[float], share: float) -> None:
    with pytest.raises(ValueError):
        percentile(values, share)


@given(samples)
def test_percentiles_of_values(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert found is not None
    tolerance = 1e-9 * (1.0 + max(map(abs, values)))
    assert found.n == len(values)
    assert (found.min, found.max) == (min(values), max(values))
    assert found.mean == pytest.approx(float(np.mean(values)), abs=tolerance)
    assert found.min <= found.mean <= found.max
    expected = [float(value) for value in np.percentile(values, [50, 90, 99])]
    assert [found.p50, found.p90, found.p99] == pytest.approx(expected, abs=tolerance)
    assert found.p50 == median(values)
    assert found.min <= found.p50 <= found.max


def test_percentiles_of_nothing() -> None:
    assert Percentiles.of([]) is None


@given(pairs)
def test_a_ratio_is_the_median_of_its_pairs(both: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*both, strict=True)
    ratio = Ratio.of(ours, theirs)
    assert ratio is not None
    quotients = np.array(ours) / np.array(theirs)
    assert ratio.pairs == pytest.approx(tuple(quotients))
    assert ratio.value == pytest.approx(float(np.median(quotients)))
    assert (ratio.low, ratio.high) == (min(ratio.pairs), max(ratio.pairs))
    assert ratio.low <= ratio.value <= ratio.high
    if len(both) > 1:
        assert ratio.spread == ratio.high - ratio.low >= 0.0
    else:
        assert ratio.spread is None


@given(pairs)
def test_the_other_way_round_a_ratio_is_the_inverse(both: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*both, strict=True)
    there, back = Ratio.of(ours, theirs), Ratio.of(theirs, ours)
    assert there is not None
    assert back is not None
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)
    if len(both) % 2:
        assert back.value == pytest.approx(1 / there.value)
    else:  # between two middle pairs lies their mean, and the mean of inverses is another number, never a smaller one
        assert back.value >= 1 / there.value * (1 - 1e-9)


@given(pairs, st.floats(min_value=1e-3, max_value=1e3))
def test_the_unit_does_not_matter(both: list[tuple[float, float]], scale: float) -> None:
    ours, theirs = zip(*both, strict=True)
    plain, scaled = Ratio.of(ours, theirs), Ratio.of([x * scale for x in ours], [x * scale for x in theirs])
    assert plain is not None
    assert scaled is not None
    assert scaled.value == pytest.approx(plain.value)
    assert scaled.pairs == pytest.approx(plain.pairs)


@given(st.lists(st.tuples(st.none() | rates, st.none() | rates), max_size=12))
def test_blocks_that_lack_a_measurement_are_left_out(both: list[tuple[float | None, float | None]]) -> None:
    known = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    ratio = Ratio.of([ours for ours, _ in both], [theirs for _, theirs in both])
    if known:
        assert ratio == Ratio.of([ours for ours, _ in known], [theirs for _, theirs in known])
    else:
        assert ratio is None


def test_zeros_and_missing_blocks_make_no_pair() -> None:
    assert paired_ratios([10.0, 0.0, 12.0, 5.0], [5.0, 5.0, 0.0]) == [2.0]
    assert Ratio.of([], []) is None
    assert Ratio.of([0.0], [1.0]) is None
