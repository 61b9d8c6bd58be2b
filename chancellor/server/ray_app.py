"""The endpoint as a Ray Serve application: whole endpoints as replicas, and routers in front of them.

    serve run chancellor.server.ray_app:app
    serve run chancellor.server.ray_app:build catalog=/models/chancellor.toml replicas=2 gpus=1 preload=all

A replica is a process with an application, a pool and engines of its own. Ray's proxy gives up requests whose replica
dies, so routers stand between them: one that has not begun to be answered goes to another replica.
"""

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from chancellor import gpus
from chancellor.catalog import Catalog
from chancellor.context import explain
from chancellor.errors import InvalidInputError, MissingDependencyError
from chancellor.server.options import ServeOptions
from chancellor.settings import settings

try:
    from ray import serve
except ImportError as missing:
    raise MissingDependencyError.of(missing.name, "ray") from missing

from chancellor.server.ray_ingress import routing
from chancellor.server.ray_replica import Engines
from chancellor.server.ray_router import PASSING

__all__ = ["RayOptions", "app", "build"]

app: serve.Application
"""The application with all options from the environment; made when it is asked for."""

_CLOSE_S: Final = 30.0
"""How long engines may take to end after their last request."""
_STARTS: Final = 3
"""How often a replica may fail to start before the application is given up."""


class RayOptions(BaseSettings):
    """Options of the application, each from CHANCELLOR_RAY_* where it is not given.

    The names of ServeOptions may be given, too; but for `api_keys`, which Ray would keep and show.
    """

    model_config = SettingsConfigDict(env_prefix="CHANCELLOR_RAY_", frozen=True, extra="allow")

    catalog: Path | None = None
    """A catalog file, read once, where the application is built; None finds one as the command line does."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Endpoints with engines of their own."""
    max_replicas: Annotated[int | None, Field(ge=1)] = None
    """Up to how many there may be under load; None keeps their number."""
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 256
    """Requests that a replica takes at once; further ones wait at the routers."""
    target_ongoing_requests: Annotated[float | None, Field(gt=0)] = None
    """Requests a replica from which on there should be another one; None is half of the most."""
    max_queued_requests: Annotated[int, Field(ge=-1)] = 1024
    """Requests that may wait at a router; more are told to come again (429). -1 has no limit."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """Processors that Ray sets aside for a replica."""
    gpus: Annotated[float | None, Field(ge=0)] = None
    """GPUs of a replica; None is as many as the catalog's widest model where this machine has some, else none."""
    memory_share: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of a device's memory for a replica's engines; None divides CHANCELLOR_MEMORY_SHARE by all replicas where
    they may be on one device: on CPUs, and on fractions of GPUs."""
    routers: Annotated[int, Field(ge=1)] = 2
    """Processes that pass requests on to the replicas."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a request that nothing has been answered to is sent to a replica again when one dies."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidInputError(
                f"The endpoint cannot be built like this: {explain(error)}.", hint="docs/scaling.md has the options."
            ) from error
        if "api_keys" in self.served():
            raise InvalidInputError(
                "Ray would keep the API keys, and show them to whoever sees the application.",
                hint="Give api_key_file, or set CHANCELLOR_SERVE_API_KEYS on every machine.",
            )

    def served(self) -> dict[str, Any]:
        """Return what is meant for ServeOptions."""
        return dict(self.model_extra or {})


def build(options: RayOptions) -> serve.Application:
    """Return the application for `serve run`, `serve deploy` or `ray.serve.run`.

    Raises:
        CatalogFileError: the catalog cannot be read.
        InvalidInputError: the options cannot be used.
    """
    catalog, given = Catalog.load(options.catalog), options.served()
    drain_s = ServeOptions(**given).drain_s
    shared: dict[str, Any] = {
        "graceful_shutdown_timeout_s": drain_s + _CLOSE_S,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    engines = serve.deployment(
        name="Engines",
        **_replicas(options),
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        max_constructor_retry_count=_STARTS,
        ray_actor_options=_resources(options, catalog),
        **shared,
    )(Engines)
    routers = serve.deployment(
        name="Router",
        num_replicas=options.routers,
        max_ongoing_requests=PASSING,
        ray_actor_options={"num_cpus": 0},
        **shared,
    )(routing(given, options.retries))
    return routers.bind(engines.bind(catalog, given))


def _replicas(options: RayOptions) -> dict[str, Any]:
    if options.max_replicas is None or options.max_replicas == options.replicas:
        return {"num_replicas": options.replicas}
    if options.max_replicas < options.replicas:
        raise InvalidInputError(
            f"max_replicas is {options.max_replicas}, and replicas {options.replicas}.", hint="Raise max_replicas."
        )
    scaling = {
        "min_replicas": options.replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": options.target_ongoing_requests or options.max_ongoing_requests / 2,
    }
    return {"autoscaling_config": scaling}


def _resources(options: RayOptions, catalog: Catalog) -> dict[str, Any]:
    wanted = options.gpus
    if wanted is None:
        local = [spec.engine for spec in catalog.eligible() if spec.engine.kind != "openai"]
        widest = max((engine.tensor_parallel_size or 1 for engine in local), default=0)
        wanted = widest if gpus.list_gpus() else 0
    share, most = options.memory_share, options.max_replicas or options.replicas
    if share is None and wanted < 1 and most > 1:
        share = settings().memory_share * (wanted or 1 / most)
    resources: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": wanted}
    if share is not None:
        resources["runtime_env"] = {"env_vars": {"CHANCELLOR_MEMORY_SHARE": f"{share:.4f}"}}
    return resources


def __getattr__(name: str) -> Any:
    if name == "app":  # not at import: whoever imports `build` may have no catalog here
        return build(RayOptions())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
