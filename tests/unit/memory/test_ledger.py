import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chancellor.memory import Ledger, estimate
from tests.entries import GIB, LLAMA, spec


def test_the_ledger_corrects_what_it_measured(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "deep" / "memory.json"), spec(LLAMA)
    guess = estimate(entry)
    assert ledger.expected(entry) == guess
    assert ledger.measured(entry) is None
    ledger.record(entry, guess.total + 3 * GIB)
    assert Ledger(ledger.path).measured(entry) == guess.total + 3 * GIB
    learnt = ledger.expected(entry)
    # What a step takes is not there yet when a CPU's engine is ready.
    assert learnt.total == guess.total + 3 * GIB + guess.activations
    assert learnt.weights == guess.weights
    ledger.record(entry, guess.kv_cache + guess.weights - GIB)
    assert ledger.measured(entry) == guess.kv_cache + guess.weights - GIB
    assert ledger.expected(entry) == learnt  # the most of the last few counts


def test_the_ledger_can_be_surprised_downwards(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "memory.json"), spec(LLAMA)
    guess = estimate(entry)
    ledger.record(entry, guess.kv_cache + guess.weights - GIB)
    learnt = ledger.expected(entry)
    assert (learnt.overhead, learnt.weights) == (0, guess.weights)  # which were counted


def test_weights_that_are_not_read_yet_are_needed_all_the_same(tmp_path: Path) -> None:
    ledger, entry = Ledger(tmp_path / "memory.json"), spec(LLAMA, kind="transformers")
    guess = estimate(entry)
    ledger.record(entry, guess.overhead)
    assert ledger.expected(entry) == guess
    ledger.record(entry, guess.weights + guess.overhead + GIB)
    assert ledger.expected(entry).total == guess.total + GIB


def test_the_size_of_the_kv_cache_is_not_what_is_learnt(tmp_path: Path) -> None:
    ledger, small, large = Ledger(tmp_path / "memory.json"), spec(kv_cache_gib=1), spec(kv_cache_gib=4)
    ledger.record(small, estimate(small).total + GIB)
    assert ledger.expected(large).total - ledger.expected(small).total == 3 * GIB
    assert ledger.measured(large) == ledger.measured(small)
    other = small.model_copy(update={"name": "another", "trinity": 99.0, "tier": "light"})
    assert ledger.measured(other) == ledger.measured(small)
    assert ledger.measured(spec(max_model_len=64)) is None


def test_others_of_its_kind_are_a_hint(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "memory.json")
    for context in (64, 128, 256):
        entry = spec(max_model_len=context)
        guess = estimate(entry)
        ledger.record(entry, guess.weights + guess.kv_cache + int(1.5 * guess.overhead))
    fresh = spec(LLAMA)
    learnt, guess = ledger.expected(fresh), estimate(fresh)
    assert learnt.overhead == pytest.approx(1.5 * guess.overhead, rel=1e-3)
    assert (learnt.weights, learnt.kv_cache, learnt.activations) == (guess.weights, guess.kv_cache, guess.activations)
    other_kind = spec(LLAMA, kind="transformers")
    assert ledger.expected(other_kind) == estimate(other_kind)


@given(measured=st.integers(0, 2**45), again=st.integers(0, 2**45))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=50, deadline=None
)
def test_no_measurement_makes_nonsense(tmp_path: Path, measured: int, again: int) -> None:
    ledger, entry = Ledger(tmp_path / "memory.json"), spec()
    ledger.record(entry, measured)
    ledger.record(entry, again)
    for expected in (ledger.expected(entry), ledger.expected(spec(LLAMA))):
        assert 0 <= expected.least <= expected.total
        assert min(expected.weights, expected.overhead, expected.activations) >= 0
    assert ledger.expected(entry).kv_cache == estimate(entry).kv_cache
    assert ledger.measured(entry) == again


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"entries": {"a": 1}}', b'{"version": 99, "entries": {}}']
)
def test_a_corrupted_ledger_starts_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "memory.json"
    path.write_bytes(content)
    ledger = Ledger(path)
    assert ledger.expected(spec()) == estimate(spec())
    ledger.record(spec(), 5 * GIB)
    assert ledger.measured(spec()) == 5 * GIB


def test_a_ledger_that_cannot_be_written_is_not_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    ledger = Ledger(tmp_path / "file" / "memory.json")
    ledger.record(spec(), GIB)
    assert ledger.measured(spec()) is None


def write(path: Path, first: int) -> None:
    ledger = Ledger(path)
    for context in range(first, first + 20):
        ledger.record(spec(max_model_len=context), context * GIB)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path, context = tmp_path / "memory.json", multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, first)) for first in (100, 200)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    ledger = Ledger(path)
    assert all(
        ledger.measured(spec(max_model_len=n)) == n * GIB for first in (100, 200) for n in range(first, first + 20)
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["memory.json", "memory.json.lock"]
    assert len(json.loads(path.read_text(encoding="utf-8"))["entries"]) == 40
