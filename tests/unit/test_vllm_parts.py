"""What is changed in vLLM's front end, which runs in the caller's process."""

import gc

import pytest

from chancellor.engines.vllm_parts import forget_environment, keep_imports, remember_environment


def test_vllm_reads_its_environment_once_until_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.setenv("VLLM_COMPUTE_NANS_IN_LOGITS", "0")
    forget_environment()
    try:
        remember_environment()
        assert not envs.VLLM_COMPUTE_NANS_IN_LOGITS
        monkeypatch.setenv("VLLM_COMPUTE_NANS_IN_LOGITS", "1")
        assert not envs.VLLM_COMPUTE_NANS_IN_LOGITS
        forget_environment()
        assert envs.VLLM_COMPUTE_NANS_IN_LOGITS
    finally:
        forget_environment()


def test_what_has_been_imported_is_kept_from_the_garbage_collector() -> None:
    import vllm  # noqa: F401

    keep_imports()
    assert gc.get_freeze_count() > 100_000
