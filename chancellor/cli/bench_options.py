"""The options of `chancellor bench`, and what they stand for."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chancellor.catalog import Catalog, ModelSpec
from chancellor.checkpoints.shapes import Shape
from chancellor.errors import BenchmarkError

if TYPE_CHECKING:
    from chancellor.bench.load import Load
    from chancellor.bench.workload import Workload

__all__ = ["BenchOptions", "catalog_of", "check_writable", "loads_of"]

_LOAD: Final = re.compile(r"(\d+)/(\d+)@(\d+(?:,\d+)*)")


@dataclass
class BenchOptions:
    """The command's options, as they were given."""

    config: Path | None = None
    model: str | None = None
    shape: str | None = None
    scheme: str | None = None
    target: str = "graph"
    against: list[str] = field(default_factory=list)
    concurrency: str | None = None
    rate: str | None = None
    requests: int | None = None
    max_seconds: float | None = None
    input_tokens: int = 128
    output_tokens: int = 64
    vary: float = 0.0
    questions: Path | None = None
    agent: bool = False
    loads: list[str] = field(default_factory=list)
    blocks: int = 2
    warmup: int | None = None
    seed: int = 0
    stream: bool = True
    slo: list[str] = field(default_factory=list)
    start_timeout: float = 900.0
    json: Path | None = None
    report: Path | None = None
    plots: Path | None = None


def catalog_of(options: BenchOptions) -> tuple[Catalog, str | None]:
    """Return the catalog, with the shape in it, and the name of the model to measure."""
    catalog = Catalog.load(options.config)
    if options.shape is None:
        if options.scheme is not None:
            raise BenchmarkError("--scheme goes with --shape.", hint="A model of the catalog has its own scheme.")
        return catalog, options.model
    if options.model is not None:
        raise BenchmarkError("--model and --shape name two models.", hint="Give one of them.")
    name = Path(options.shape).stem if options.shape.endswith(".json") else options.shape
    Shape.of(options.shape)  # an unknown one is an error now
    name = f"shape:{name}" if name in catalog else name
    others = (other for other in catalog.values() if other.name != name)
    spec = ModelSpec(name=name, source=f"shape:{options.shape}", trinity=100.0, scheme=options.scheme)
    return Catalog([spec, *others], minimum_trinity_score=catalog.minimum_trinity_score), name


def loads_of(options: BenchOptions) -> "list[Load]":
    """Return the loads, in the order in which they are run."""
    from chancellor.bench.load import Load
    from chancellor.bench.workload import AgentTurns, Questions, Synthetic

    kinds = {
        "--load": bool(options.loads),
        "--questions": options.questions is not None,
        "--agent": options.agent,
    }
    if len(given := [name for name, is_given in kinds.items() if is_given]) > 1:
        raise BenchmarkError(f"{' and '.join(given)} exclude one another.", hint="Give one of them.")
    if options.loads:
        if options.rate is not None or options.concurrency is not None:
            raise BenchmarkError("--load has its own concurrencies.", hint="Leave --concurrency and --rate out.")
        made = []
        for text in options.loads:
            if (parts := _LOAD.fullmatch(text.replace(" ", ""))) is None:
                raise BenchmarkError(f"{text!r} is no load.", hint="Give INPUT/OUTPUT@CONCURRENCIES: 128/64@1,8.")
            workload: Workload = Synthetic(int(parts[1]), int(parts[2]), vary=options.vary)
            made += [
                Load(workload, concurrency=int(number), requests=options.requests, max_s=options.max_seconds)
                for number in parts[3].split(",")
            ]
        return made
    if options.questions is not None:
        workload = Questions.read(options.questions, max_tokens=options.output_tokens)
    elif options.agent:
        workload = AgentTurns()
    else:
        workload = Synthetic(options.input_tokens, options.output_tokens, vary=options.vary)
    rates = _numbers("--rate", options.rate)
    concurrencies = _numbers("--concurrency", options.concurrency)
    if any(not number.is_integer() for number in concurrencies):
        raise BenchmarkError("A concurrency is a whole number.", hint="Give e.g. --concurrency 1,8,32.")
    if not rates and not concurrencies:
        concurrencies = [1.0, 8.0]
    return [
        *(
            Load(workload, concurrency=int(number), requests=options.requests, max_s=options.max_seconds)
            for number in concurrencies
        ),
        *(Load(workload, rate=rate, requests=options.requests, max_s=options.max_seconds) for rate in rates),
    ]


def _numbers(option: str, text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BenchmarkError(
            f"{option} {text!r} holds something else than numbers.", hint="Give e.g. 1,8,32."
        ) from None
    if not numbers:
        raise BenchmarkError(f"{option} {text!r} holds no number.", hint=f"Give e.g. {option} 1,8,32, or leave it out.")
    return numbers


def check_writable(file: Path | None) -> None:
    """Fail before the measuring, not after.

    Raises:
        BenchmarkError: it is a folder, or lies in none that can be made.
    """
    if file is None:
        return
    if file.is_dir():
        raise BenchmarkError(f"{file} is a folder.", hint="Name a file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be written: {error}.", hint="Name another place.") from error
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise BenchmarkError(f"{file} cannot be written: there is no permission.", hint="Name another place.")
