"""`chancellor models`: the catalog as a table."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chancellor.catalog import Catalog, ModelSpec
from chancellor.errors import CheckpointError, MissingDependencyError
from chancellor.memory import Estimate, Ledger, devices, estimate
from chancellor.quantization.prepare import parameters_of
from chancellor.trinity import Pillars

__all__ = ["run"]

_GIB = 2**30


def run(config: Path | None, *, as_json: bool) -> None:
    """Print the catalog."""
    catalog = Catalog.load(config)
    ledger, found = Ledger(), devices()
    rows = [_row(catalog, spec, ledger) for spec in catalog.values()]
    if as_json:
        answer = {"models": rows, "devices": [asdict(device) for device in found]}
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("scheme", "tier"):
        table.add_column(column, overflow="fold")
    for column in ("parameters", "needs\nGiB", "measured\nGiB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("Trinity", justify="right")
    table.add_column("status", no_wrap=True)
    for row in rows:
        balance = f" ({row['balance']})" if row["balance"] else ""
        need, taken = row["memory"]["expected_bytes"], row["memory"]["measured_bytes"]
        table.add_row(
            escape(row["name"]),
            row["scheme"] or "-",
            row["tier"] or "-",
            "unknown" if row["parameters"] is None else f"{row['parameters'] / 1e6:,.0f} M",
            _on_each(need and need["total"], need),
            _on_each(taken, need),
            f"{row['trinity_score']:g}{balance}",
            "[red]rejected[/]" if row["rejected"] else "[green]eligible[/]",
        )
    console = Console(highlight=False)
    console.print(table)
    for row in rows:
        if row["rejected"]:
            console.print(f"{escape(row['name'])} is rejected: {escape(row['rejected'])}", soft_wrap=True)
    for device in found:
        budget, free = _gib(device.budget), _gib(device.free)
        console.print(f"{device.name}: {_gib(device.total)}, of which {budget} are for engines; {free} are free")


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _on_each(size: int | None, need: dict[str, Any] | None) -> str:
    count = len(need["devices"]) if need else 0
    return "-" if size is None or not count else f"{size / _GIB:.1f}" + (f" x {count}" if count > 1 else "")


def _needs(spec: ModelSpec, ledger: Ledger) -> tuple[Estimate, Estimate] | None:
    """Return the estimate as it is made, and as it is corrected by what engines took here."""
    try:
        return estimate(spec), ledger.expected(spec)
    except Exception:  # noqa: BLE001 - whatever is odd about the model, the others are listed
        return None


def _told(need: Estimate) -> dict[str, Any]:
    return {**asdict(need), "total": need.total, "least": need.least}


def _row(catalog: Catalog, spec: ModelSpec, ledger: Ledger) -> dict[str, Any]:
    rejected, parameters = catalog.rejection(spec), None
    try:
        parameters = parameters_of(spec)
    except (CheckpointError, MissingDependencyError) as error:
        rejected = rejected or error.message
    needs = _needs(spec, ledger)
    pillars = spec.trinity if isinstance(spec.trinity, Pillars) else None
    return {
        "name": spec.name,
        "source": spec.source,
        "revision": spec.revision,
        "scheme": spec.scheme,
        "tier": spec.tier,
        "parameters": parameters,
        "trinity_score": spec.trinity_score,
        "pillars": pillars.model_dump() if pillars else None,
        "balance": str(pillars.balance) if pillars else None,
        "rejected": rejected,
        "memory": {
            "estimate_bytes": _told(needs[0]) if needs else None,
            "expected_bytes": _told(needs[1]) if needs else None,
            "measured_bytes": ledger.measured(spec) if needs else None,
        },
    }
