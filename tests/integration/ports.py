"""A port for a server that takes it only when it has imported much."""

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a port below those that connections get, and above those of Ray's workers."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("No port is free.")
