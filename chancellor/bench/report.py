"""What a benchmark leaves behind: the JSON file, as types."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chancellor.bench.machine import Machine
from chancellor.bench.statistics import Percentiles
from chancellor.context import explain
from chancellor.errors import ReportError

__all__ = ["SCHEMA", "Comparison", "Report", "Run", "Sample", "Segment"]

SCHEMA = 1


class Sample(BaseModel):
    """One request. Times are in seconds; None stands for what could not be measured."""

    model_config = ConfigDict(frozen=True)

    block: int
    """Which repetition of the run it belongs to, from 0."""
    index: int
    """Which request of the segment it was; for all targets, the same index has the same lengths."""
    start_s: float
    """When it was sent, from the segment's start; in open loop, when it was due."""
    latency_s: float | None
    """From `start_s` to the last token."""
    ttft_s: float | None
    """From `start_s` to the first token."""
    itl_s: tuple[float, ...] | None = None
    """Gaps between the pieces of a streamed answer, in order."""
    queue_s: float | None = None
    """Waiting in the engine for the first turn, by the engine's own clock."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (latency - TTFT) / (tokens - 1)."""
        if self.latency_s is None or self.ttft_s is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.output_tokens - 1)


class Segment(BaseModel):
    """One target under one load, once: the unit that alternates with those of other targets."""

    model_config = ConfigDict(frozen=True)

    block: int
    duration_s: float
    """From the first request to the end of the last."""
    complete: bool
    """False where the run was interrupted: the finished requests are kept."""
    requests: int
    errors: int
    tokens_per_s: float | None
    """Output tokens over duration."""
    input_tokens_per_s: float | None
    requests_per_s: float | None
    goodput_requests_per_s: float | None = None
    """Requests that kept all latency targets, over duration; None without targets."""
    peak_running: int | None = None
    """Most requests in one batch, by the engine's own count, as far as it was sampled."""
    kv_cache_usage: float | None = None
    """Highest share of the KV cache in use, from 0 to 1, as far as it was sampled."""
    prefix_cache_queries: int | None = None
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_cache_hits: int | None = None
    """Those that were found."""
    preemptions: int | None = None
    cpu_utilization: float | None = None
    """Mean number of cores that this process and its children kept busy."""
    process_memory_mib: float | None = None
    """Highest resident memory of this process and its children."""
    gpu_memory_mib: float | None = None
    """Highest memory in use on the visible GPUs."""
    gpu_utilization: float | None = None
    """Mean over the visible GPUs and the time, from 0 to 1."""
    gpu_energy_j: float | None = None
    """Energy that the visible GPUs took, in joules."""


class Run(BaseModel):
    """One target under one load, all repetitions together."""

    model_config = ConfigDict(frozen=True)

    name: str
    """The target: "graph", "raw", "unquantised", ..."""
    detail: str
    """What stands behind the name: model, scheme, engine."""
    load: str
    """The load in words, e.g. "128/128 at concurrency 8"."""
    concurrency: int | None
    """Requests kept in flight (closed loop); None in open loop."""
    rate: float | None = None
    """Mean arrivals a second (open loop, Poisson); None in closed loop."""
    workload: str
    requests: int
    """Requests that were answered, in complete segments (in cut-off ones, where there is no other)."""
    errors: int
    error_kinds: dict[str, int] = {}
    duration_s: float
    tokens_per_s: float | None
    input_tokens_per_s: float | None
    requests_per_s: float | None
    ttft_s: Percentiles | None
    itl_s: Percentiles | None
    tpot_s: Percentiles | None
    latency_s: Percentiles | None
    queue_s: Percentiles | None
    input_tokens: Percentiles | None
    output_tokens: Percentiles | None
    goodput_requests_per_s: float | None
    peak_running: int | None
    kv_cache_usage: float | None
    prefix_cache_hit_rate: float | None
    """Prompt tokens found in the prefix cache over those looked up."""
    preemptions: int | None
    cpu_utilization: float | None
    process_memory_mib: float | None
    gpu_memory_mib: float | None
    gpu_utilization: float | None
    gpu_energy_j: float | None
    joules_per_token: float | None
    """GPU energy over output tokens."""
    segments: list[Segment]
    """All of them, those that were cut off too."""
    samples: list[Sample]
    """All requests, those of cut-off segments too."""


class Comparison(BaseModel):
    """The first target against another one under the same load."""

    model_config = ConfigDict(frozen=True)

    subject: str
    against: str
    load: str
    workload: str
    concurrency: int | None
    rate: float | None = None
    tokens_per_s_ratio: float
    """Median over the blocks of subject / other: above 1, the subject is faster."""
    spread: float | None
    """Highest minus lowest ratio of the blocks; None with a single block."""
    low: float
    high: float
    pairs: tuple[float, ...]
    ttft_p50_ratio: float | None
    """Over the blocks that count above: median TTFT of the subject over the other's: below 1, the subject is faster."""
    latency_p50_ratio: float | None
    process_memory_ratio: float | None = None


class Report(BaseModel):
    """A whole benchmark. `runs` and `ratios` are the stable part."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_version: Annotated[int, Field(alias="schema")] = SCHEMA
    created_at: str
    state: Literal["complete", "interrupted", "failed"]
    failures: dict[str, str] = {}
    """Targets that did not start, and segments that failed before their first request, with the reason."""
    machine: Machine
    settings: dict[str, Any]
    starts_s: dict[str, float]
    """Seconds that each target took to become ready."""
    facts: dict[str, dict[str, float]] = {}
    """What became known at each target's start, e.g. `weights_gib`."""
    runs: list[Run]
    ratios: list[Comparison]

    def run(self, name: str, load: str) -> Run | None:
        """Return the run of this target under this load, if it is there."""
        return next((run for run in self.runs if run.name == name and run.load == load), None)

    def save(self, path: Path) -> None:
        """Write the JSON file; an older one is replaced only by a complete one.

        Raises:
            ReportError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise ReportError(f"The report {path} cannot be written: {error}.", hint="Name another place.") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a JSON file.

        Raises:
            ReportError: it is missing, or no report.
        """
        try:
            report = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ReportError(f"The report {path} cannot be read: {error}.") from error
        except ValidationError as error:
            raise ReportError(f"{path} is no report of this version: {explain(error)}.") from error
        if report.schema_version != SCHEMA:
            raise ReportError(
                f"{path} has version {report.schema_version} of the format, and this is version {SCHEMA}.",
                hint="Read it with the Chancellor that wrote it.",
            )
        return report
