"""What Ray Serve makes the processes of that stand before the replicas."""

import logging
import sys
from typing import Any

from prometheus_client import generate_latest
from ray import serve
from starlette.applications import Starlette

from chancellor.server.logs import json_lines
from chancellor.server.options import ServeOptions
from chancellor.server.ray_router import Router

__all__ = ["log_to_stderr", "routing"]


def routing(given: dict[str, Any], retries: int) -> Any:
    """Return the class that Ray Serve makes routers of; bound to it are the replicas.

    Args:
        given: options of the endpoint; the others come from each router's environment.
        retries: how often a request that nothing has been answered to is sent again.
    """

    def application() -> Starlette:
        log_to_stderr()
        name = serve.get_replica_context().app_name
        replicas, routers = (serve.get_deployment_handle(one, app_name=name) for one in ("Engines", "Router"))
        return Router(replicas, routers, ServeOptions(**given), retries).application()

    @serve.ingress(application)
    class Routers:
        def __init__(self, *_: Any) -> None: ...

        async def metrics(self) -> tuple[str, str]:
            """Return this router's name, and its metrics as Prometheus reads them."""
            text = generate_latest(self.app.state.registry)  # type: ignore[attr-defined] # Ray's
            return serve.get_replica_context().replica_id.unique_id, text.decode()

    return Routers


def log_to_stderr() -> None:
    """Write our log there as lines of JSON; Ray collects them."""
    log = logging.getLogger("chancellor")
    log.addHandler(json_lines(sys.stderr))
    log.setLevel(logging.INFO)
    log.propagate = False
