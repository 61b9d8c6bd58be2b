"""`chancellor models`: the catalog as a table."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chancellor.catalog import Catalog, ModelSpec
from chancellor.errors import CheckpointError, MissingDependencyError
from chancellor.quantization.prepare import parameters_of
from chancellor.trinity import Pillars

__all__ = ["run"]


def run(config: Path | None, *, as_json: bool) -> None:
    """Print the catalog."""
    catalog = Catalog.load(config)
    rows = [_row(catalog, spec) for spec in catalog.values()]
    if as_json:
        sys.stdout.write(json.dumps({"models": rows}, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("scheme", "tier"):
        table.add_column(column, overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("Trinity", justify="right")
    table.add_column("status")
    for row in rows:
        balance = f" ({row['balance']})" if row["balance"] else ""
        table.add_row(
            escape(row["name"]),
            row["scheme"] or "-",
            row["tier"] or "-",
            "unknown" if row["parameters"] is None else f"{row['parameters'] / 1e6:,.0f} M",
            f"{row['trinity_score']:g}{balance}",
            "[red]rejected[/]" if row["rejected"] else "[green]eligible[/]",
        )
    console = Console(highlight=False)
    console.print(table)
    for row in rows:
        if row["rejected"]:
            console.print(f"{escape(row['name'])} is rejected: {escape(row['rejected'])}", soft_wrap=True)


def _row(catalog: Catalog, spec: ModelSpec) -> dict[str, Any]:
    rejected, parameters = catalog.rejection(spec), None
    try:
        parameters = parameters_of(spec)
    except (CheckpointError, MissingDependencyError) as error:
        rejected = rejected or error.message
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
    }
