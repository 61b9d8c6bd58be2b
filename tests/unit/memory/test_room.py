from pathlib import Path
from typing import Any

import pytest

from chancellor.engines.room import Room, fitted, too_little
from chancellor.memory import Device, Ledger, estimate
from tests.entries import GIB, LLAMA, MIB, spec


def room(folder: Path, budget: int = 64 * GIB) -> Room:
    return Room(Ledger(folder / "memory.json"), lambda: [Device("cuda:0", 80 * GIB, 79 * GIB, budget)])


@pytest.mark.parametrize("vllm", [{"kv_cache_memory_bytes": 30 * GIB}, {"gpu_memory_utilization": 0.7}])
def test_what_an_entry_gives_vllm_itself_is_the_least(on_gpus: Any, tmp_path: Path, vllm: dict[str, Any]) -> None:
    """It wins over what the engine would be granted."""
    on_gpus(1)
    entry = spec(LLAMA, dtype="bfloat16", vllm=vllm)
    need = room(tmp_path).expected(entry)
    assert need is not None
    assert need.kv_cache == need.kv_cache_least
    whole = 30 * GIB + need.fixed if "kv_cache_memory_bytes" in vllm else int(0.7 * 80 * GIB)
    assert need.least == whole
    fit = room(tmp_path, whole).fit(need, {})
    assert fit.kv_cache == need.kv_cache
    tight = room(tmp_path, whole - MIB).fit(need, {})
    assert (tight.kv_cache, tight.never) == (None, True)
    assert "as its entry sets its size" in too_little(entry, need, tight).message


def test_a_share_that_is_an_option_can_be_less(on_gpus: Any, tmp_path: Path) -> None:
    on_gpus(1)
    entry = spec(LLAMA, dtype="bfloat16", gpu_memory_utilization=0.7)
    need = room(tmp_path).expected(entry)
    assert need is not None
    assert need.total == int(0.7 * 80 * GIB)
    assert need.least == estimate(entry).least
    fit = room(tmp_path, 40 * GIB).fit(need, {})
    assert fit.kv_cache == 40 * GIB - need.fixed
    assert fitted(entry, fit).engine.kv_cache_gib == fit.kv_cache / GIB


def test_what_does_not_fit_on_an_empty_device_never_fits(on_gpus: Any, tmp_path: Path) -> None:
    on_gpus(1)
    need = estimate(spec(LLAMA, dtype="bfloat16"))
    full = Room(Ledger(tmp_path / "memory.json"), lambda: [Device("cuda:0", 80 * GIB, GIB, 64 * GIB)])
    assert not full.fit(need, {"cuda:0": 60 * GIB}).never
    assert not full.fit(need, {}).possible
    assert room(tmp_path, 10 * GIB).fit(need, {}).never


def test_where_others_have_the_memory_the_rest_is_enough_for_vllm_to_start_too(on_gpus: Any, tmp_path: Path) -> None:
    """It looks itself whether the share that it is given is free, once its process has taken some of it."""
    on_gpus(1)
    entry = spec(LLAMA, "int8", dtype="bfloat16", max_model_len=2048, kv_cache_gib=24)
    total, free = int(79.2 * GIB), 15 * GIB
    full = Room(Ledger(tmp_path / "memory.json"), lambda: [Device("cuda:0", total, free, int(0.8 * total))])
    need = full.expected(entry)
    assert need is not None
    fit = full.fit(need, {})
    assert fit.share is not None
    assert fit.share * total <= free - GIB
    assert fit.kv_cache is not None
    assert fit.kv_cache + need.fixed == free - GIB // 2  # an estimate may be a little too low
    assert fitted(entry, fit).engine.gpu_memory_utilization == fit.share


@pytest.mark.parametrize("beyond", [0, 1, 100 * MIB])
def test_what_is_left_over_is_not_kept_from_the_least(on_gpus: Any, tmp_path: Path, beyond: int) -> None:
    on_gpus(1)
    need = estimate(spec(LLAMA, "int8", dtype="bfloat16"))
    full = Room(Ledger(tmp_path / "memory.json"), lambda: [Device("cuda:0", 80 * GIB, need.least + beyond, 64 * GIB)])
    assert full.fit(need, {}).kv_cache == need.kv_cache_least
    assert full.fit(need, {}, {"cuda:0": 2 * GIB}).kv_cache == need.kv_cache_least + 2 * GIB + beyond - GIB // 2


def test_where_there_is_more_than_the_budget_nothing_is_left_over(on_gpus: Any, tmp_path: Path) -> None:
    on_gpus(1)
    need = estimate(spec(LLAMA, "int8", dtype="bfloat16", kv_cache_gib=100))
    fit = room(tmp_path).fit(need, {"cuda:0": 10 * GIB})
    assert fit.kv_cache == 54 * GIB - need.fixed
    assert fit.share == pytest.approx(54 / 80 + 0.005, abs=0.001)
