"""A small Ray of its own, and `serve run` in it, for tests: `python -m tests.integration.ray_program FOLDER PORT ...`.

What comes after the folder and the port is what `serve run` is given. The line "delete" on stdin ends the application.
"""

import sys
import threading

import ray
from ray import serve
from ray.serve.scripts import cli

_MIB = 2**20


def _listen() -> None:
    for line in sys.stdin:
        if line == "delete\n":
            serve.delete("default")
            sys.stdout.write("deleted\n")
            sys.stdout.flush()


if __name__ == "__main__":
    folder, port, *arguments = sys.argv[1:]
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,  # logical ones
        num_gpus=0,
        object_store_memory=100 * _MIB,
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    threading.Thread(target=_listen, daemon=True).start()
    cli.main(["run", *arguments])
