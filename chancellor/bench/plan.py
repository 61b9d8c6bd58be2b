"""What a benchmark is going to do, made from what its caller gave, and whether it makes sense."""

from collections.abc import Sequence

from chancellor.bench.load import Load
from chancellor.bench.targets.base import Target
from chancellor.bench.workload import Questions, Synthetic, Workload
from chancellor.errors import BenchmarkError, WorkloadError

__all__ = ["check", "make_loads"]


def make_loads(
    workload: Workload | str | Sequence[str] | None,
    concurrency: int | Sequence[int] | None,
    rates: float | Sequence[float],
    requests: int | None,
) -> list[Load]:
    """Return the loads, closed loops first; arguments as in `PerformanceMonitor.of`."""
    asked = workload if isinstance(workload, Workload) else _workload(workload)
    rates = [rates] if isinstance(rates, (int, float)) else list(rates)
    if concurrency is None:
        concurrency = [] if rates else [1, 8]
    return [
        *(
            Load(asked, concurrency=number, requests=requests)
            for number in ([concurrency] if isinstance(concurrency, int) else concurrency)
        ),
        *(Load(asked, rate=rate, requests=requests) for rate in rates),
    ]


def check(targets: Sequence[Target], loads: Sequence[Load], blocks: int, warmup: int | None) -> None:
    """Check that the loads can be run on the targets and told apart afterwards.

    Raises:
        BenchmarkError: they cannot.
    """
    if not targets or not loads:
        raise BenchmarkError("A benchmark needs a target and a load.", hint="Give at least one of each.")
    if blocks < 1:
        raise BenchmarkError(f"The number of blocks (--blocks) is {blocks}.", hint="Give 1 or more.")
    if warmup is not None and warmup < 0:
        raise BenchmarkError(f"The warm-up is {warmup} requests.", hint="Give 0 or more.")
    labels = [load.label for load in loads]
    if doubled := {label for label in labels if labels.count(label) > 1}:
        raise BenchmarkError(
            f"Two loads are called {', '.join(sorted(doubled))}.", hint="Give each once; Questions take a name."
        )
    free = [target.name for target in targets if not target.fixed_length]
    if free and len(targets) > 1 and any(load.workload.ignore_eos for load in loads):
        raise BenchmarkError(
            f"{', '.join(free)} ends its answers when it likes, and the others would go on to their full length.",
            hint="Compare it by questions: workload=['...'], or Questions.read(file).",
        )
    for target in targets:
        for load in loads:
            _check_length(target, load.workload)


def _check_length(target: Target, workload: Workload) -> None:
    """Fail before an engine starts, where it is known that it could not take the work."""
    limit, longest = target.max_model_len, workload.longest
    if limit is not None and longest is not None and longest > limit:
        raise WorkloadError(
            f"{workload.name}: that is up to {longest:,} tokens a request, and {target.name} has room for {limit:,}.",
            hint="Ask for fewer (--input-tokens, --output-tokens), or raise max_model_len in the catalog's "
            "[models.engine]; a shape can be an entry there.",
        )


def _workload(questions: str | Sequence[str] | None) -> Workload:
    if questions is None:
        return Synthetic()
    return Questions([questions] if isinstance(questions, str) else questions)
