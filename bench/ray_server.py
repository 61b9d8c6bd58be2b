"""The endpoint on a Ray of its own, for benches: one replica, one router, in another process.

That process is `python bench/ray_server.py FOLDER PORT MODEL [CATALOG]`; it ends with its stdin.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import psutil
from serving import READY_S
from vllm_server import end

from chancellor.settings import settings

ROLES: Final = {
    "proxy": "ray::ProxyActor",
    "router": "ray::ServeReplica:default:Router",
    "replica": "ray::ServeReplica:default:Engines",
    "controller": "ray::ServeController",
    "raylet": "raylet/raylet",
    "gcs": "gcs/gcs_server",
}
"""The processes that are measured, by how their command lines begin or what is in them."""
Processes = dict[str, list[psutil.Process]]


def serve_on_ray(folder: str, port: int, model: str, config: Path | None) -> None:
    """Run a Ray of its own with the endpoint, until stdin ends."""
    import ray
    from ray import serve

    from chancellor.server.ray_app import RayOptions, build

    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=max(4, os.cpu_count() or 1),  # logical ones
        object_store_memory=100 * 2**20,
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(RayOptions(catalog=config, replicas=1, routers=1, preload=model)))
    sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call] # Ray's has no types
    ray.shutdown()


@contextlib.contextmanager
def ray_server(config: Path | None, model: str) -> Iterator[tuple[str, psutil.Process]]:
    """Give the URL of the endpoint on Ray, when the model answers, and the process above all others."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as room:
        home = Path(room) / "home"
        home.mkdir()
        # Where Ray does not find this, it asks 169.254.169.254 which cloud it is in.
        (home / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n", encoding="utf-8")
        environment = {
            "CHANCELLOR_CACHE_DIR": str(settings().cache_dir),
            "CHANCELLOR_LOG_DIR": str(settings().log_dir),
            "HF_HOME": str(Path("~/.cache/huggingface").expanduser()),
            **os.environ,
            "HOME": str(home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else the other endpoint goes first
        }
        where = () if config is None else (str(config.resolve()),)
        command = [sys.executable, __file__, room, str(port), model, *where]
        log = Path(tempfile.gettempdir()) / f"chancellor-ray-{os.getpid()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
            while True:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"The endpoint on Ray is not ready; its log is {log}")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/ready", timeout=20).is_success:
                        break
                time.sleep(0.5)
            yield url, psutil.Process(process.pid)
        finally:
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.stdin:
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
            end(process)
            for left in psutil.wait_procs(below, timeout=30)[1]:
                left.kill()


def processes_of(driver: psutil.Process) -> Processes:
    """Return Ray's processes by their roles."""
    found: Processes = {role: [] for role in ROLES}
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            for role, begins in ROLES.items():
                if title.startswith(begins) or ("/" in begins and begins in title.partition(" ")[0]):
                    found[role].append(process)
    if missing := [role for role in ("proxy", "router", "replica") if not found[role]]:
        sys.exit(f"Ray runs no {', '.join(missing)} that this script knows")
    return found


if __name__ == "__main__":
    folder, port, model, *config = sys.argv[1:]
    serve_on_ray(folder, int(port), model, Path(config[0]) if config else None)
