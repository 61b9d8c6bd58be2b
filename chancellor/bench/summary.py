"""From segments and samples to runs, and from runs to ratios."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from chancellor.bench.load import Load
from chancellor.bench.report import Comparison, Run, Sample, Segment
from chancellor.bench.statistics import Percentiles, Ratio, median

__all__ = ["compare_runs", "sum_up"]

T = TypeVar("T")


def sum_up(name: str, detail: str, load: Load, segments: Sequence[Segment], samples: Sequence[Sample]) -> Run:
    """Put all repetitions of one target under one load together."""
    everything, kept = list(segments), list(samples)
    # Of a segment that was cut off, the slow requests are missing: it counts only where there is nothing else.
    segments = [segment for segment in everything if segment.complete] or everything
    samples = _of_blocks(kept, {segment.block for segment in segments})
    good = [sample for sample in samples if sample.error is None]
    duration = sum(segment.duration_s for segment in segments)
    tokens = _all([sample.output_tokens for sample in good])
    prompts = _all([sample.input_tokens for sample in good])
    energies = [segment.gpu_energy_j for segment in segments]
    queries, hits = _total(segments, "prefix_cache_queries"), _total(segments, "prefix_cache_hits")
    energy = sum(_known(energies)) if energies and None not in energies else None
    return Run(
        name=name,
        detail=detail,
        load=load.label,
        concurrency=load.concurrency,
        rate=load.rate,
        workload=load.workload.name,
        requests=len(good),
        errors=len(samples) - len(good),
        error_kinds=dict(Counter(sample.error.split(":")[0] for sample in samples if sample.error is not None)),
        duration_s=duration,
        tokens_per_s=sum(tokens) / duration if tokens and duration else None,
        input_tokens_per_s=sum(prompts) / duration if prompts and duration else None,
        requests_per_s=len(good) / duration if good and duration else None,
        ttft_s=Percentiles.of(_known(sample.ttft_s for sample in good)),
        itl_s=Percentiles.of([gap for sample in good for gap in sample.itl_s or ()]),
        tpot_s=Percentiles.of(_known(sample.tpot_s for sample in good)),
        latency_s=Percentiles.of(_known(sample.latency_s for sample in good)),
        queue_s=Percentiles.of(_known(sample.queue_s for sample in good)),
        input_tokens=Percentiles.of(prompts),
        output_tokens=Percentiles.of(tokens),
        goodput_requests_per_s=_over_time(segments, "goodput_requests_per_s"),
        peak_running=_highest(segments, "peak_running"),
        kv_cache_usage=_highest(segments, "kv_cache_usage"),
        prefix_cache_hit_rate=hits / queries if queries and hits is not None else None,
        preemptions=_total(segments, "preemptions"),
        cpu_utilization=_over_time(segments, "cpu_utilization"),
        process_memory_mib=_highest(segments, "process_memory_mib"),
        gpu_memory_mib=_highest(segments, "gpu_memory_mib"),
        gpu_utilization=_over_time(segments, "gpu_utilization"),
        gpu_energy_j=energy,
        joules_per_token=energy / sum(tokens) if energy is not None and tokens else None,
        segments=everything,
        samples=kept,
    )


def compare_runs(subject: Run, other: Run) -> Comparison | None:
    """Compare two runs under the same load, block by block; None if no block has tokens of both."""
    ours = {segment.block: segment for segment in subject.segments if segment.complete}
    theirs = {segment.block: segment for segment in other.segments if segment.complete}
    blocks = sorted(ours.keys() & theirs.keys())
    ratio = Ratio.of([ours[block].tokens_per_s for block in blocks], [theirs[block].tokens_per_s for block in blocks])
    if ratio is None:
        return None
    return Comparison(
        subject=subject.name,
        against=other.name,
        load=subject.load,
        workload=subject.workload,
        concurrency=subject.concurrency,
        rate=subject.rate,
        tokens_per_s_ratio=ratio.value,
        spread=ratio.spread,
        low=ratio.low,
        high=ratio.high,
        pairs=ratio.pairs,
        ttft_p50_ratio=_quotient(subject, other, lambda run: _median(run, blocks, "ttft_s")),
        latency_p50_ratio=_quotient(subject, other, lambda run: _median(run, blocks, "latency_s")),
        process_memory_ratio=_quotient(subject, other, lambda run: run.process_memory_mib),
    )


def _quotient(subject: Run, other: Run, figure: Callable[[Run], float | None]) -> float | None:
    ours, theirs = figure(subject), figure(other)
    return ours / theirs if ours is not None and theirs else None


def _median(run: Run, blocks: Iterable[int], field: str) -> float | None:
    values = _known(getattr(sample, field) for sample in _of_blocks(run.samples, set(blocks)) if sample.error is None)
    return median(values) if values else None


def _of_blocks(samples: Iterable[Sample], blocks: set[int]) -> list[Sample]:
    return [sample for sample in samples if sample.block in blocks]


def _all(values: list[T | None]) -> list[T]:
    """Return the values; none of them if one is missing, as a sum over the rest would be too low."""
    known = _known(values)
    return known if len(known) == len(values) else []


def _known(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def _highest(segments: Sequence[Segment], field: str) -> float | None:
    return max(_known(getattr(segment, field) for segment in segments), default=None)


def _total(segments: Sequence[Segment], field: str) -> int | None:
    values = [getattr(segment, field) for segment in segments]
    return None if not values or None in values else sum(values)


def _over_time(segments: Sequence[Segment], field: str) -> float | None:
    """Return the mean, weighted by the segments' durations."""
    known = [(getattr(segment, field), segment.duration_s) for segment in segments]
    known = [(value, weight) for value, weight in known if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
