"""Two reports side by side: what became faster or slower, and whether that is more than noise."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from chancellor.bench.report import Report, Run
from chancellor.bench.statistics import Percentiles, beyond_chance

__all__ = ["Change", "Difference", "Figures", "RunKey", "compare", "regressions", "undecided"]

_BY_CHANCE: Final = 0.05
_BY_RUN: Final = ("loads", "targets", "prefix_cache_emptied")
"""Settings with an entry for each load or target; runs that are in one report only are told as such."""


class RunKey(NamedTuple):
    """What makes two runs the same measurement."""

    name: str
    load: str
    workload: str


class Figures(BaseModel):
    """One figure in both reports."""

    model_config = ConfigDict(frozen=True)

    old: float | None
    new: float | None
    change_percent: float | None
    """(new - old) / old; None where it cannot be said."""

    @classmethod
    def of(cls, old: float | None, new: float | None) -> "Figures":
        """Put two figures side by side."""
        change = None if old is None or new is None or old == 0 else (new / old - 1) * 100
        return cls(old=old, new=new, change_percent=change)


class Change(BaseModel):
    """One run in both reports. Times are in seconds."""

    model_config = ConfigDict(frozen=True)

    name: str
    load: str
    workload: str
    concurrency: int | None
    rate: float | None
    tokens_per_s: Figures
    beyond_noise: Literal["yes", "no", "unknown"]
    """Whether the blocks' tokens/s lie in ranges that do not overlap; unknown where chance explains that, too."""
    ttft_p50_s: Figures
    ttft_p99_s: Figures
    latency_p50_s: Figures
    errors: Figures


class Difference(BaseModel):
    """Two reports side by side."""

    model_config = ConfigDict(frozen=True)

    warnings: list[str]
    """What makes the comparison doubtful, the weightiest first."""
    changes: list[Change]
    only_old: list[RunKey]
    only_new: list[RunKey]
    gaps: list[str]
    """What the new report lacks of the old one, in words: nobody can say whether that became slower."""


def compare(old: Report, new: Report) -> Difference:
    """Match the runs of two reports by name, load and workload.

    The noise is what the blocks of each report show. It does not know what differs from one day to the next on the
    same machine, which is often more.
    """
    before, after = _runs(old), _runs(new)
    shared = [key for key in before if key in after]
    return Difference(
        warnings=list(_warnings(old, new, [(before[key], after[key]) for key in shared])),
        changes=[_change(before[key], after[key]) for key in shared],
        only_old=[key for key in before if key not in after],
        only_new=[key for key in after if key not in before],
        gaps=list(_gaps(new, before, after)),
    )


def regressions(difference: Difference, threshold: float) -> list[Change]:
    """Return the runs that lost more than `threshold` percent of their tokens/s, beyond the noise."""
    return [
        change
        for change in difference.changes
        if change.beyond_noise == "yes" and (change.tokens_per_s.change_percent or 0.0) < -threshold
    ]


def undecided(difference: Difference, threshold: float) -> list[Change]:
    """Return the runs that lost as much, but have too few blocks to tell it from noise."""
    return [
        change
        for change in difference.changes
        if change.beyond_noise == "unknown" and (change.tokens_per_s.change_percent or 0.0) < -threshold
    ]


def _runs(report: Report) -> dict[RunKey, Run]:
    return {RunKey(run.name, run.load, run.workload): run for run in report.runs}


def _change(old: Run, new: Run) -> Change:
    silent = not new.requests and bool(old.tokens_per_s)
    return Change(
        name=new.name,
        load=new.load,
        workload=new.workload,
        concurrency=new.concurrency,
        rate=new.rate,
        # Where nothing is answered any more, all tokens are lost, though no block has a rate.
        tokens_per_s=Figures.of(old.tokens_per_s, 0.0 if silent else new.tokens_per_s),
        beyond_noise="yes" if silent else _beyond_noise(old, new),
        ttft_p50_s=Figures.of(_p50(old.ttft_s), _p50(new.ttft_s)),
        ttft_p99_s=Figures.of(_p99(old.ttft_s), _p99(new.ttft_s)),
        latency_p50_s=Figures.of(_p50(old.latency_s), _p50(new.latency_s)),
        errors=Figures.of(old.errors, new.errors),
    )


def _p50(values: Percentiles | None) -> float | None:
    return values.p50 if values else None


def _p99(values: Percentiles | None) -> float | None:
    return values.p99 if values else None


def _blocks(run: Run) -> list[float]:
    return [block.tokens_per_s for block in run.segments if block.complete and block.tokens_per_s is not None]


def _beyond_noise(old: Run, new: Run) -> Literal["yes", "no", "unknown"]:
    before, after = _blocks(old), _blocks(new)
    if min(len(before), len(after)) < 2:
        return "unknown"
    if min(after) <= max(before) and max(after) >= min(before):
        return "no"
    # Few blocks of equal speeds often miss each other: then the distance has to be large for their scatter, too.
    rare = _by_chance(before, after) <= _BY_CHANCE
    return "yes" if rare or beyond_chance(before, after) else "unknown"


def _by_chance(before: list[float], after: list[float]) -> float:
    """Return how often the ranges of so many blocks miss each other at equal speeds."""
    return 2 / math.comb(len(before) + len(after), len(before))


def _gaps(new: Report, before: Mapping[RunKey, Run], after: Mapping[RunKey, Run]) -> Iterator[str]:
    if new.state != "complete":
        yield f"The new benchmark {_ended(new)}, so that not all of it is there."
    if not before.keys() & after.keys():
        yield "The reports have no run in common."
    for key, run in before.items():
        where = f"{key.name}, {key.load}"
        # A target that did not start goes by its name, a segment that failed by its block as well.
        failed = [why for what, why in new.failures.items() if what == key.name or what.startswith(f"{where}, block ")]
        if key not in after:
            yield f"{where}, is missing in the new report{f': {failed[0]}' if failed else '.'}"
        elif failed and len(_blocks(after[key])) < len(_blocks(run)):
            yield f"{where}, has fewer blocks in the new report: {failed[0]}"
        elif after[key].requests and run.tokens_per_s and after[key].tokens_per_s is None:
            yield f"{where}, has no tokens/s in the new report."


def _ended(report: Report) -> str:
    return "failed" if report.state == "failed" else "was interrupted"


def _warnings(old: Report, new: Report, pairs: list[tuple[Run, Run]]) -> Iterator[str]:
    before, after = old.machine, new.machine
    hardware = [
        f"{what} {then} became {now}"
        for what, then, now in (
            ("CPU", before.cpu, after.cpu),
            ("cores", before.cores, after.cores),
            ("instruction sets", ", ".join(before.features) or "none", ", ".join(after.features) or "none"),
            ("memory", f"{before.memory_gib:g} GiB", f"{after.memory_gib:g} GiB"),
            ("GPUs", _gpus(old), _gpus(new)),
        )
        if then != now
    ]
    if hardware:
        yield f"The machines differ, so the changes may be theirs: {'; '.join(hardware)}."
    if not pairs:
        yield "The reports have no run in common."
    for which, report in (("old", old), ("new", new)):
        if report.state != "complete":
            yield f"The {which} benchmark {_ended(report)}."
        for name, reason in report.failures.items():
            yield f"In the {which} benchmark {name} failed: {reason}"
    if versions := list(_differences(_versions(old), _versions(new))):
        yield f"Versions differ: {'; '.join(versions)}."
    if settings := list(_differences(*_common_settings(old.settings, new.settings))):
        yield f"Settings differ: {'; '.join(settings)}."
    blocks = [(_blocks(then), _blocks(now)) for then, now in pairs]
    chance = max((_by_chance(then, now) for then, now in blocks if len(then) > 1 and len(now) > 1), default=0.0)
    if chance > _BY_CHANCE:
        yield (
            f"With so few blocks, ranges of equal speeds miss each other by chance in up to {chance * 100:.0f} % of "
            "cases: measure with --blocks 4 or more to be sure."
        )


def _gpus(report: Report) -> str:
    return ", ".join(f"{gpu.name} ({gpu.memory_mib:g} MiB)" for gpu in report.machine.gpus) or "none"


def _versions(report: Report) -> dict[str, Any]:
    machine = report.machine
    drivers = {f"driver of GPU {number}": gpu.driver for number, gpu in enumerate(machine.gpus)}
    return {"Python": machine.python, "system": machine.system, **drivers, **machine.versions}


def _common_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Leave out what only one of them can have: entries of loads and targets that the other has not measured."""
    ours, theirs = dict(old), dict(new)
    for section in _BY_RUN:
        first, second = ours.pop(section, None), theirs.pop(section, None)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            ours[section] = {key: value for key, value in first.items() if key in second}
            theirs[section] = {key: value for key, value in second.items() if key in first}
    return ours, theirs


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        then, now = old.get(key), new.get(key)
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            yield from _differences(then, now, f"{prefix}{key}.")
        elif then != now:
            yield f"{prefix}{key} {_text(then)} became {_text(now)}"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
