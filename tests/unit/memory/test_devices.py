from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from chancellor.memory import Device, cgroup, devices
from chancellor.settings import Settings
from tests.entries import GIB


def test_the_cpu_is_a_device_with_a_budget() -> None:
    (cpu,) = devices(share=0.5)
    assert cpu.name == "cpu"
    assert 0 < cpu.free <= cpu.total <= psutil.virtual_memory().total
    assert cpu.budget == cpu.total // 2
    assert devices()[0].budget == int(0.8 * cpu.total)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        devices(share=share)
    with pytest.raises(ValidationError):
        Settings(memory_share=share)


def test_the_share_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANCELLOR_MEMORY_SHARE", "0.25")
    assert Settings().memory_share == 0.25


def test_gpus_take_the_place_of_the_cpu(on_gpus: Any) -> None:
    on_gpus(2)
    assert [one.name for one in devices()] == ["cuda:0", "cuda:1"]
    assert devices(share=1.0)[0] == Device("cuda:0", 80 * GIB, 79 * GIB, 80 * GIB)


def fake_groups(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    proc = root / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups, encoding="utf-8")
    (proc / "mountinfo").write_text("\n".join(mounts), encoding="utf-8")
    for name, content in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")
    return proc


def test_version_2_and_its_ancestors(tmp_path: Path) -> None:
    proc = fake_groups(
        tmp_path,
        "0::/a/b\n",
        ["29 23 0:26 / /sys rw,nosuid - cgroup2 cgroup2 rw"],
        {
            "a/b/memory.max": "max\n",
            "a/b/memory.current": "5\n",
            "a/memory.max": "1000\n",
            "a/memory.current": "700\n",
            "a/memory.stat": "anon 300\nfile 400\nshmem 100\ninactive_file 200\nactive_file 100\nslab 7\n",
            "memory.max": "5000\n",
            "memory.current": "100\n",
        },
    )
    assert cgroup.limits(proc, tmp_path) == [(1000, 400), (5000, 100)]


def test_version_1_as_a_container_sees_it(tmp_path: Path) -> None:
    """Its group by the host's path, which is what is mounted at the top."""
    proc = fake_groups(
        tmp_path,
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc/job\n0::/\n",
        [
            "30 23 0:27 /docker/abc /sys/cpu ro - cgroup cgroup rw,cpu",
            "31 23 0:28 /docker/abc /sys/memory\\040here ro - cgroup cgroup rw,memory",
        ],
        {
            "memory here/memory.limit_in_bytes": "2000\n",
            "memory here/memory.usage_in_bytes": "1500\n",
            "memory here/memory.stat": "cache 5\ntotal_inactive_file 300\ntotal_active_file 100\n",
            "memory here/job/memory.limit_in_bytes": "9223372036854771712\n",
            "memory here/job/memory.usage_in_bytes": "1\n",
        },
    )
    assert cgroup.limits(proc, tmp_path) == [(2000, 1100)]


def test_a_group_out_of_sight_and_nonsense(tmp_path: Path) -> None:
    files = {"memory.max": "77\n", "memory.current": "7\n", "memory.stat": "file\nx y z\ninactive_file many\n"}
    proc = fake_groups(tmp_path, "0::/../../elsewhere\nnonsense\n", ["", "1 2", "1 2 3 / /sys r - cgroup2 x rw"], files)
    assert cgroup.limits(proc, tmp_path) == [(77, 7)]
    assert cgroup.limits(tmp_path / "absent", tmp_path) == []


@given(text=st.text(max_size=200), mounts=st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=100)
def test_no_content_of_proc_breaks_it(tmp_path: Path, text: str, mounts: str) -> None:
    (tmp_path / "cgroup").write_text(text, encoding="utf-8", errors="replace")
    (tmp_path / "mountinfo").write_text(mounts, encoding="utf-8", errors="replace")
    cgroup.limits(tmp_path, tmp_path)


def test_a_limit_makes_the_device_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: [cgroup.Limit(GIB, GIB // 4), cgroup.Limit(2 * GIB, 3 * GIB)])
    assert devices(share=0.5) == [Device("cpu", GIB, 0, GIB // 2)]


def test_processes_that_the_kernel_has_killed_are_counted(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    events = "low 0\nhigh 2\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n"
    proc = fake_groups(one, "0::/a\n", ["29 23 0:26 / /sys rw - cgroup2 c rw"], {"a/memory.events": events})
    assert cgroup.oom_kills(proc, one) == 3
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
    mounts = ["31 23 0:28 / /sys rw - cgroup cgroup rw,memory"]
    proc = fake_groups(two, "4:memory:/job\n", mounts, {"job/memory.oom_control": control})
    assert cgroup.oom_kills(proc, two) == 5


def test_at_the_top_the_machine_counts_them(tmp_path: Path) -> None:
    proc = fake_groups(tmp_path, "0::/\n", ["29 23 0:26 / /sys rw - cgroup2 c rw"], {})
    assert cgroup.oom_kills(proc, tmp_path) == 0
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 2\n", encoding="ascii")
    assert cgroup.oom_kills(proc, tmp_path) == 2
    assert cgroup.oom_kills() >= 0
