"""The doctor's checks of the machine, each on one that is ill in one way."""

import os
import platform
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chancellor.catalog import ModelSpec
from chancellor.doctor import folders, gpus, hardware, memory
from chancellor.gpus import Gpu
from chancellor.memory import Device, Estimate, Ledger
from chancellor.settings import Settings
from tests.findings import CUDA, H100, TORCH, one


class TestHardware:
    @pytest.mark.parametrize(
        ("files", "time"),
        [
            ({"cgroup": "0::/a/b", "a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
            ({"cgroup": "0::/", "cpu.max": "max 100000"}, None),
            ({"cgroup": "3:cpu,cpuacct:/a", "cpu,cpuacct/a/cpu.cfs_quota_us": "-1"}, None),
            ({"cgroup": "3:cpu:/a", "cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
            ({}, None),
        ],
    )
    def test_limits_of_cpu_time(self, tmp_path: Path, files: dict[str, str], time: float | None) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="ascii")
        assert hardware.cpu_time(tmp_path, tmp_path) == time

    def test_fewer_cpus_than_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7})
        (tmp_path / "cgroup").write_text("0::/", encoding="ascii")
        (tmp_path / "cpu.max").write_text("200000 100000", encoding="ascii")
        found = one(hardware.cores(on_gpu=False, proc=tmp_path, root=tmp_path), "cores")
        assert found.status == "warning"
        assert (found.fix or "").startswith("taskset -c 4,5 chancellor")

    def test_a_cpu_that_vllm_cannot_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from chancellor.bench.machine import Machine

        old = Machine.this().model_copy(update={"cpu": "Old", "features": []})
        monkeypatch.setattr(Machine, "this", lambda: old)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        assert one(hardware.features(on_gpu=False), "cpu").status == "error"
        assert one(hardware.features(on_gpu=True), "cpu").status == "ok"


class TestGpus:
    listed = (Gpu("H100", 81920.0, "580"),)

    @pytest.mark.parametrize(
        ("torch", "listed", "cuda_vllm", "status", "word"),
        [
            (TORCH, (), False, "ok", "CPU"),
            (TORCH, listed, False, "error", "without CUDA"),
            ({**CUDA, "gpus": [], "warnings": ["The driver is too old"]}, listed, True, "error", "driver is too old"),
            ({**CUDA, "gpus": []}, (), True, "error", "no GPU that works"),
            ({**CUDA, "gpus": []}, (), False, "ok", "CPU"),
            ({**CUDA, "gpus": [H100]}, (), True, "warning", "NVML"),
            ({**CUDA, "gpus": [H100]}, listed, True, "ok", "H100"),
            ({"error": "x"}, listed, True, "ok", "H100"),
        ],
    )
    def test_who_sees_them(
        self,
        torch: dict[str, Any],
        listed: tuple[Gpu, ...],
        cuda_vllm: bool,
        status: str,
        word: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        found = one(gpus.usable({"torch": torch}, listed, cuda_vllm=cuda_vllm, device=Path("/none")), "gpus")
        assert found.status == status
        assert word in found.message

    def test_hidden_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        found = one(gpus.usable({"torch": {**CUDA, "gpus": []}}, (), cuda_vllm=True), "gpus")
        assert found.fix == "unset CUDA_VISIBLE_DEVICES"

    def test_what_they_can_compute(self) -> None:
        for capability, status, word in (
            ((7, 5), "warning", "float16"),
            ((8, 0), "warning", "int8"),
            ((8, 9), "ok", ""),
        ):
            facts = {"torch": {**CUDA, "gpus": [{**H100, "capability": capability}]}}
            found = one(gpus.devices(facts, 0.8), "capability")
            assert found.status == status
            assert word in (found.fix or "")

    def test_memory_that_others_have(self) -> None:
        facts = {"torch": {**CUDA, "gpus": [{**H100, "free": 30 * 2**30}]}}
        found = one(gpus.devices(facts, 0.8), "gpu-memory")
        assert found.status == "warning"
        assert "gpu_memory_utilization = 0.35" in (found.fix or "")
        assert one(gpus.devices(facts, 0.3), "gpu-memory").status == "ok"


class TestMemory:
    def test_little_of_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "devices", lambda: [Device("cpu", 2**31, 2**29, 2**30)])
        found = one(memory.free(), "memory")
        assert found.status == "warning"
        assert "docker run --memory" in (found.fix or "")  # no machine that runs these tests has so little

    def test_shared_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert one(memory.shared(tmp_path / "none"), "shared-memory").status == "warning"
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**26))
        found = one(memory.shared(tmp_path), "shared-memory")
        assert (found.status, "64 MiB" in found.message) == ("warning", True)

    def test_models_that_do_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = ModelSpec(name="x", source="org/x", trinity=96)
        need = Estimate(("cuda:0", "cuda:1"), 10 * 2**30, 0, 0, 0, 0, 0)
        monkeypatch.setattr(Ledger, "expected", lambda *_: need)
        for devices, status in (
            ([Device("cuda:0", 80 * 2**30, 70 * 2**30, 64 * 2**30)], "error"),  # one of two
            ([Device(f"cuda:{index}", 12 * 2**30, 12 * 2**30, 9 * 2**30) for index in range(2)], "error"),
            ([Device(f"cuda:{index}", 24 * 2**30, 5 * 2**30, 19 * 2**30) for index in range(2)], "warning"),
            ([Device(f"cuda:{index}", 24 * 2**30, 23 * 2**30, 19 * 2**30) for index in range(2)], "ok"),
        ):
            monkeypatch.setattr(memory, "devices", lambda devices=devices: devices)
            assert one(memory.fit(spec), "memory").status == status

    def test_folders(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_text("", encoding="utf-8")
        found = list(folders.folders(Settings(cache_dir=file / "cache", log_dir=tmp_path / "new" / "log")))
        cache = one(found, "cache-folder")
        assert (cache.status, "cannot be written" in cache.message) == ("error", True)
        assert "CHANCELLOR_CACHE_DIR" in (cache.fix or "")
        assert one(found, "log-folder").status == "ok"
        assert sorted(tmp_path.iterdir()) == [file]  # nothing is left behind

    def test_open_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
        assert one(folders.open_files(), "open-files").status == "warning"
