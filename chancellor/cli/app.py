"""The commands and their options."""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from chancellor.errors import ChancellorError

__all__ = ["app", "main"]

app = typer.Typer(
    name="chancellor",
    help="Route each question to a TorchAO-quantised model in vLLM, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None,
    typer.Option(help="Catalog file; else CHANCELLOR_CONFIG, else ./chancellor.toml, else the built-in demo."),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]


class SchemeChoice(StrEnum):
    """Schemes that `quantize` takes."""

    int8 = "int8"
    int8wo = "int8wo"
    none = "none"


class DtypeChoice(StrEnum):
    """Compute types that `quantize` takes."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    config: Config = None,
    model: Annotated[str | None, typer.Option(help="Answer with this model instead of choosing one.")] = None,
    policy: Annotated[str | None, typer.Option(help="How to choose: trinity, light or strong.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put before the question.")] = None,
    as_json: Json = False,
) -> None:
    """Ask one question; the answer streams to stdout, decision and metrics to stderr."""
    from chancellor.cli.ask import run

    options: dict[str, Any] = {
        "model": model,
        "policy": policy,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "system_prompt": system_prompt,
    }
    context = {name: value for name, value in options.items() if value is not None}
    run(question, config, context, as_json=as_json)


@app.command()
def models(config: Config = None, as_json: Json = False) -> None:
    """List the catalog: scores, tiers, sizes, and why a model is rejected."""
    from chancellor.cli.models import run

    run(config, as_json=as_json)


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(help="A hub id, a local folder, a .gguf file, or package:NAME.")],
    dest: Annotated[Path, typer.Argument(help="Folder to make.")],
    scheme: Annotated[SchemeChoice, typer.Option(help="How; none converts without quantising.")] = SchemeChoice.int8,
    revision: Annotated[str | None, typer.Option(help="Commit or tag on the hub.")] = None,
    dtype: Annotated[DtypeChoice | None, typer.Option(help="Compute type; by default this machine's.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that the checkpoint brings.")] = False,
    as_json: Json = False,
) -> None:
    """Write a TorchAO checkpoint that vLLM and transformers load."""
    from chancellor.cli.quantize import run

    run(
        source,
        dest,
        None if scheme is SchemeChoice.none else scheme.value,
        revision=revision,
        dtype=dtype.value if dtype else None,
        trust_remote_code=trust_remote_code,
        as_json=as_json,
    )


def main() -> None:
    """Run the command line: exit code 2 for an error that the user can mend, 130 for Ctrl-C, 143 for SIGTERM."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _terminate)
    try:
        app()
    except ChancellorError as error:
        console = Console(stderr=True)
        console.print(f"[bold red]Error:[/] {escape(error.message)}", soft_wrap=True, highlight=False)
        console.print(escape(error.hint), soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _terminate(signum: int, _: FrameType | None) -> None:
    # Leaving by SystemExit closes the engines; the default action would leave their processes behind.
    raise SystemExit(128 + signum)
