"""The performance monitor: targets and loads in, a report out."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from chancellor.bench.against import make_targets
from chancellor.bench.events import Event
from chancellor.bench.load import Load
from chancellor.bench.machine import Machine
from chancellor.bench.measure import Measurement, measure
from chancellor.bench.objectives import Objectives
from chancellor.bench.plan import check, make_loads
from chancellor.bench.report import Report, Sample, Segment
from chancellor.bench.summary import compare_runs, sum_up
from chancellor.bench.targets.base import Target
from chancellor.bench.workload import Workload
from chancellor.catalog import Catalog
from chancellor.engines import EnginePool, default_pool
from chancellor.errors import BenchmarkError, ChancellorError, EngineStartError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langgraph.graph.state import CompiledStateGraph

__all__ = ["PerformanceMonitor"]

logger = logging.getLogger(__name__)
_CLOSE_S: Final = 60.0


class PerformanceMonitor:
    """Measures the first target, and the others beside it, under each load.

    All targets are loaded at the same time, and their segments alternate: A B, then B A, and so on, so that a machine
    that slows down or warms up harms all alike. The ratio of two targets is the median over the blocks.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        loads: Sequence[Load],
        *,
        blocks: int = 2,
        warmup: int | None = None,
        stream: bool = True,
        seed: int = 0,
        objectives: Objectives | None = None,
        start_timeout_s: float = 900.0,
        settings: dict[str, Any] | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_report: Callable[[Report], None] | None = None,
    ) -> None:
        """Prepare a benchmark; `run` does it.

        Args:
            targets: the one to measure first, then those to compare it with.
            loads: what is asked, and how it arrives.
            blocks: repetitions of everything; at least 2 for a spread.
            warmup: requests before each segment's clock starts; None is as many as are in flight.
            stream: whether answers are streamed; without, inter-token latency stays unknown.
            seed: of prompts and arrivals.
            objectives: latency targets, for goodput.
            start_timeout_s: a target that is not ready by then counts as failed.
            settings: further settings for the report.
            on_event: called with everything that happens, sometimes from another thread.
            on_report: called with the report so far after each segment, so that it can be saved.

        Raises:
            BenchmarkError: no target, no load, or less than one block.
        """
        check(targets, loads, blocks, warmup)
        self.targets, self.loads, self.blocks = list(targets), list(loads), blocks
        self._warmup, self._stream, self._seed = warmup, stream, seed
        self._objectives = objectives or Objectives()
        self._start_timeout_s = start_timeout_s
        self._settings = settings or {}
        self._on_event, self._on_report = on_event, on_report
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._machine = Machine.this()
        self._ready: list[Target] = []
        self._starts: dict[str, float] = {}
        self._facts: dict[str, dict[str, float]] = {}
        self._emptied: dict[str, bool] = {}
        self._details = {target.name: target.detail for target in self.targets}
        self._failures: dict[str, str] = {}
        self._measured: dict[tuple[str, str], tuple[list[Segment], list[Sample]]] = {}
        self._state: Literal["complete", "interrupted", "failed"] = "interrupted"

    @classmethod
    def of(
        cls,
        subject: "str | Target | BaseChatModel | CompiledStateGraph[Any, Any, Any, Any]" = "graph",
        *,
        model: str | None = None,
        catalog: Catalog | str | Path | None = None,
        against: str | Sequence[str] = (),
        workload: Workload | str | Sequence[str] | None = None,
        concurrency: int | Sequence[int] | None = None,
        rates: float | Sequence[float] = (),
        requests: int | None = None,
        pool: EnginePool | None = None,
        **options: Any,
    ) -> Self:
        """Prepare a benchmark from names.

        Args:
            subject: "graph", "chat", "engine", "raw", a server's URL, a chat model, a compiled graph, or a target.
            model: model of the catalog; None takes the first that may be chosen.
            catalog: the models, or the path of a catalog file; None finds one as the command line does.
            against: what to compare with: raw, unquantised, stock, transformers, a model, or a URL.
            workload: a workload, or questions; None is random prompts of 128 tokens and answers of 64.
            concurrency: numbers of requests in flight (closed loop); None is 1, then 8, unless there are rates.
            rates: mean requests a second (open loop).
            requests: of each segment.
            pool: where the engines run; None is the process's own.
            **options: those of the constructor.

        Raises:
            ChancellorError: a name, a number, or the catalog is wrong.

        Example:
            >>> PerformanceMonitor.of("graph", against=["raw"], concurrency=[1, 8]).run().ratios
        """
        loads = make_loads(workload, concurrency, rates, requests)
        against = [against] if isinstance(against, str) else against
        models = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
        targets = make_targets(subject, against, catalog=models, model=model, pool=pool or default_pool())
        return cls(targets, loads, **options)

    def run(self) -> Report:
        """Measure. An interrupt is passed on; `report` has what was measured until then.

        Raises:
            ChancellorError: the first target does not start.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.arun())
        raise BenchmarkError("An event loop runs here already.", hint="Write: await monitor.arun()")

    async def arun(self) -> Report:
        """Like `run`, for async callers."""
        self._ready, self._state = [], "interrupted"
        for kept in (self._starts, self._facts, self._failures, self._measured, self._emptied):
            kept.clear()
        try:
            await self._start()
            for block in range(self.blocks):
                for load in self.loads:
                    # A B, B A, A B, ...
                    for target in self._ready if block % 2 == 0 else reversed(self._ready):
                        await self._segment(target, load, block)
            self._state = "complete"
        except Exception:
            self._state = "failed"
            raise
        finally:
            for target in self._ready:
                await _close(target)
        return self.report

    async def _start(self) -> None:
        for target in self.targets:
            self._tell(Event("starting", target.name, message=target.detail))
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self._start_timeout_s):
                    await target.start()
            except TimeoutError:
                error = EngineStartError(f"{target.name} was not ready after {self._start_timeout_s:g} s.")
                await self._fail(target, error)
            except ChancellorError as error:
                await self._fail(target, error)
            except Exception as error:  # noqa: BLE001 - targets may be anybody's, and the others go on
                await self._fail(target, EngineStartError(f"{target.name} did not start: {_message(error)}"))
            except BaseException:
                await _close(target)
                raise
            else:
                self._ready.append(target)
                if target.started_here:
                    self._starts[target.name] = time.perf_counter() - began
                # Kept, as a closed target knows them no more.
                self._details[target.name] = target.detail
                if target.facts:
                    self._facts[target.name] = target.facts
                self._tell(Event("started", target.name, message=f"{time.perf_counter() - began:.1f} s"))

    async def _fail(self, target: Target, error: ChancellorError) -> None:
        """Go on without it: that it does not start is a result. Without the first one there is nothing to measure."""
        await _close(target)
        self._failures[target.name] = error.message
        self._tell(Event("failed", target.name, message=error.message))
        if target is self.targets[0]:
            raise error

    async def _segment(self, target: Target, load: Load, block: int) -> None:
        measurement = Measurement(block)
        event = Event("segment", target.name, load.label, block, total=load.count)
        self._tell(event)

        def on_sample(_: Sample) -> None:
            done = len(measurement.samples)
            self._tell(Event("sample", target.name, load.label, block, done, load.count))

        try:
            await measure(
                target,
                load,
                seed=f"{self._seed}/{load.label}/{target.name}/{block}",
                arrivals=f"{self._seed}/{load.label}/{block}",
                block=block,
                stream=self._stream,
                warmup=self._warmup,
                into=measurement,
                on_sample=on_sample,
            )
        except Exception as error:  # noqa: BLE001 - it did not get ready; the other segments go on
            where = f"{target.name}, {load.label}, block {block}"
            self._failures[where] = _message(error)
            self._tell(Event("failed", where, load.label, block, message=_message(error)))
        finally:
            self._emptied[target.name] = measurement.emptied
            if measurement.samples:
                segments, samples = self._measured.setdefault((target.name, load.label), ([], []))
                segment = measurement.segment(self._objectives)
                segments.append(segment)
                samples.extend(list(measurement.samples))
                rate = "no answer" if segment.tokens_per_s is None else f"{segment.tokens_per_s:,.1f} tokens/s"
                done = len(measurement.samples)
                self._tell(Event("measured", target.name, load.label, block, done, load.count, rate))
        if self._on_report is not None:
            self._on_report(self.report)

    @property
    def report(self) -> Report:
        """What has been measured so far."""
        runs = [
            sum_up(target.name, self._details[target.name], load, *measured)
            for load in self.loads
            for target in self.targets
            if (measured := self._measured.get((target.name, load.label))) is not None
        ]
        subject = self.targets[0].name
        by_load = {run.load: run for run in runs if run.name == subject}
        ratios = [
            comparison
            for run in runs
            if run.name != subject and run.load in by_load
            if (comparison := compare_runs(by_load[run.load], run)) is not None
        ]
        settings = {
            "targets": self._details,
            "loads": {load.label: {"requests": load.count, "max_s": load.max_s} for load in self.loads},
            "prefix_cache_emptied": self._emptied,
            "blocks": self.blocks,
            "warmup": self._warmup,
            "stream": self._stream,
            "seed": self._seed,
            "objectives": self._objectives.model_dump(exclude_none=True),
            **self._settings,
        }
        return Report(
            created_at=self._created,
            state=self._state,
            failures=self._failures,
            machine=self._machine,
            settings=settings,
            starts_s=self._starts,
            facts=self._facts,
            runs=runs,
            ratios=ratios,
        )

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


async def _close(target: Target) -> None:
    """Close it, whatever comes of it: the others have to be closed as well."""
    try:
        async with asyncio.timeout(_CLOSE_S):
            await target.close()
    except Exception:
        logger.warning("%s did not close cleanly", target.name, exc_info=True)


def _message(error: Exception) -> str:
    return str(getattr(error, "message", None) or f"{type(error).__name__}: {error}")
