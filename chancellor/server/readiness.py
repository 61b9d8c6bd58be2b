"""Whether the endpoint can answer: which engines were to start with it, and what has become of them."""

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from chancellor.catalog import Catalog, ModelSpec
from chancellor.engines import EnginePool, GenerationRequest
from chancellor.errors import ChancellorError, EngineError, EngineStartError, InvalidInputError
from chancellor.server.choice import Choice, Chooser
from chancellor.server.options import ServeOptions

__all__ = ["Readiness", "State"]

logger = logging.getLogger(__name__)
State = Literal["starting", "ready", "failed", "draining"]
_USUAL = "What is the capital of France, and what should one see there?"
_SPECIAL = ("auto", "all", "none")
_OPTIONAL_S = 15.0
"""How long the start waits for an answer of a model that it can do without."""


class Readiness:
    """Starts the engines that are to be there from the beginning, one after another, and knows how that went.

    Raises:
        UnknownModelError: a model that is to be started is not in the catalog.
        InvalidInputError: `auto`, `all` and `none` stand beside other names.
    """

    def __init__(self, catalog: Catalog, options: ServeOptions, pool: EnginePool, chooser: Chooser) -> None:
        self._catalog, self._pool, self._chooser = catalog, pool, chooser
        self._wanted = options.preload
        if len(self._wanted) > 1 and any(name in _SPECIAL for name in self._wanted):
            raise InvalidInputError(
                f"preload is {', '.join(self._wanted)}.", hint="Give names of models, or one of: auto, all, none."
            )
        for name in self._wanted:
            if name not in _SPECIAL:
                catalog.usable(name)
        self.draining = False
        self.error: ChancellorError | None = None
        self.started: dict[str, float] = {}
        """Seconds that each engine's start took."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when all have been started, or one has failed."""
        self.optional: Callable[[ModelSpec], bool] = lambda _: False
        """Which models the endpoint may begin without, where their engines do not start."""
        self._done = False

    @property
    def state(self) -> State:
        """What the endpoint is about."""
        if self.draining:
            return "draining"
        if self.error is not None:
            return "failed"
        return "ready" if self._done else "starting"

    def report(self) -> dict[str, Any]:
        """Return the state of the endpoint and of each model that may be used."""
        models = {}
        for spec in self._catalog.values():
            if self._catalog.rejection(spec) is None:
                state = self._pool.state(spec)
                models[spec.name] = {"state": state, "start_s": self._pool.start_s(spec)}
        error = {} if self.error is None else {"error": self.error.message}
        return {"status": self.state, "models": models, **error}

    async def prepare(self) -> None:
        """Start what is to be started."""
        try:
            for choice in await self._choices():
                began = time.perf_counter()
                try:
                    await self._start(choice)
                except EngineError as error:
                    if not self.optional(choice.spec):
                        raise
                    logger.warning("%r cannot be asked yet: %s", choice.spec.name, error)
                else:
                    self.started[choice.spec.name] = time.perf_counter() - began
        except ChancellorError as error:
            logger.error("No start: %s", error)
            self.error = error
        except Exception as error:  # a node of somebody's own, perhaps: nobody waits for this task
            logger.exception("No start")
            self.error = EngineStartError(f"The models could not be started: {type(error).__name__}: {error}")
        else:
            self._done = True
        self.on_end()

    async def _choices(self) -> list[Choice]:
        if self._wanted == ("none",):
            return []
        if self._wanted == ("auto",):
            return [await self._chooser.choose([{"role": "user", "content": _USUAL}])]
        if self._wanted == ("all",):
            return [self._chooser.named(spec.name) for spec in self._catalog.eligible()]
        return [self._chooser.named(name) for name in self._wanted]

    async def _start(self, choice: Choice) -> None:
        """Ask for one token: the ladder holds for the start, too, and the first caller finds a warm engine."""
        spec: ModelSpec = choice.spec
        limit_s = _OPTIONAL_S if self.optional(spec) else None
        request = GenerationRequest(
            messages=[{"role": "user", "content": _USUAL}], max_tokens=1, retries=1, timeout_s=limit_s
        )
        deltas = [delta async for delta in self._pool.agenerate(spec, request, choice.ladder)]
        for step in deltas[-1].fallbacks:
            logger.warning("%s: %s, to %s: %s", spec.name, step["step"], step["to"], step["reason"])
