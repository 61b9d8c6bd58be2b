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


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's way
    if wanted:
        from importlib.metadata import version

        typer.echo(f"chancellor {version('chancellor')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Route each question to a TorchAO-quantised model in vLLM, and measure it."""


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


@app.command()
def doctor(
    config: Config = None,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read all files of all models, to find those that have changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what keeps Chancellor from working here, and the line that mends it; exit code 1 for errors."""
    from chancellor.cli.doctor import run

    run(config, with_checksums=checksums, as_json=as_json)


@app.command()
def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless told otherwise.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one, 8000 is the default.")] = None,
    preload: Annotated[
        list[str] | None, typer.Option(help="Model to start at once; or all, none, auto. Can be repeated.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with API keys, one a line; or CHANCELLOR_SERVE_API_KEYS=a,b.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Name by which the server may be called. Can be repeated.")
    ] = None,
    max_requests: Annotated[int | None, typer.Option(help="Most requests under way; more get 429.")] = None,
    max_body_mib: Annotated[float | None, typer.Option(help="Largest request body.")] = None,
    max_tokens_limit: Annotated[int | None, typer.Option(help="Most tokens that a request may ask for.")] = None,
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Seconds that a request may take.")] = None,
    drain_s: Annotated[float | None, typer.Option("--drain", help="Seconds to finish requests after SIGTERM.")] = None,
    drain_delay_s: Annotated[
        float | None, typer.Option("--drain-delay", help="Seconds before that in which requests are still taken.")
    ] = None,
    log_prompts: Annotated[bool | None, typer.Option("--log-prompts", help="Log what is asked and answered.")] = None,
) -> None:
    """Serve the models, and the Chancellor's choice among them, over OpenAI's protocol."""
    from chancellor.cli.serve import run

    run(
        config,
        {
            "host": host,
            "port": port,
            "preload": preload,
            "api_key_file": api_key_file,
            "allowed_hosts": allowed_host,
            "max_requests": max_requests,
            "max_body_mib": max_body_mib,
            "max_tokens_limit": max_tokens_limit,
            "timeout_s": timeout_s,
            "drain_s": drain_s,
            "drain_delay_s": drain_delay_s,
            "log_prompts": log_prompts,
        },
    )


bench_app = typer.Typer(invoke_without_command=True, help="Measure speed, or compare two measurements.")
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench(
    context: typer.Context,
    config: Config = None,
    model: Annotated[str | None, typer.Option(help="Model of the catalog; else its first that may be chosen.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="A model without weights instead: llama-3.1-8b, a config.json.")
    ] = None,
    scheme: Annotated[str | None, typer.Option(help="Quantise the shape so.")] = None,
    target: Annotated[
        str, typer.Option(help="What to measure: graph, chat, engine, raw, or a server's URL.")
    ] = "graph",
    against: Annotated[
        list[str] | None,
        typer.Option(help="Compare with raw, unquantised, stock, transformers, a model or a URL; can be repeated."),
    ] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests in flight, e.g. 1,8,32 (closed loop).")] = None,
    rate: Annotated[str | None, typer.Option(help="Requests a second, e.g. 0.5,2 (open loop, Poisson).")] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            help="Requests of each segment; else two (with --agent, conversations) for each in flight, or 20 seconds "
            "of the rate, and at least 6."
        ),
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Start no request later than this.")] = None,
    input_tokens: Annotated[int, typer.Option(help="Length of the synthetic prompts.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Length of the answers.")] = 64,
    vary: Annotated[float, typer.Option(help="Draw lengths from (1 - x) to (1 + x) times these.")] = 0.0,
    questions: Annotated[Path | None, typer.Option(help="Ask the questions of this file, one a line or JSONL.")] = None,
    agent: Annotated[
        bool, typer.Option("--agent", help="Ask as agents do: a shared prefix and growing turns.")
    ] = False,
    load: Annotated[
        list[str] | None, typer.Option(help="INPUT/OUTPUT@CONCURRENCIES, e.g. 128/64@1,8; repeatable.")
    ] = None,
    blocks: Annotated[int, typer.Option(help="Repetitions; A B, then B A, and so on.")] = 2,
    warmup: Annotated[int | None, typer.Option(help="Requests before each segment; else as many as in flight.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Stream the answers.")] = True,
    slo: Annotated[
        list[str] | None, typer.Option(help="Latency target for goodput: ttft=0.5, tpot=0.05, latency=5.")
    ] = None,
    start_timeout: Annotated[float, typer.Option(help="Seconds that a target may take to start.")] = 900.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything there, each request included.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page with plots there.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write the plots as PNGs into this folder.")] = None,
) -> None:
    """Measure throughput, latency, memory and energy, alone or against something else."""
    if context.invoked_subcommand is not None:
        return
    from chancellor.cli.bench import run
    from chancellor.cli.bench_options import BenchOptions

    run(
        BenchOptions(
            config=config,
            model=model,
            shape=shape,
            scheme=scheme,
            target=target,
            against=against or [],
            concurrency=concurrency,
            rate=rate,
            requests=requests,
            max_seconds=max_seconds,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            vary=vary,
            questions=questions,
            agent=agent,
            loads=load or [],
            blocks=blocks,
            warmup=warmup,
            seed=seed,
            stream=stream,
            slo=slo or [],
            start_timeout=start_timeout,
            json=json_file,
            report=report,
            plots=plots,
        )
    )


@bench_app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A file of `bench --json`.")],
    new: Annotated[Path, typer.Argument(help="A later one.")],
    as_json: Json = False,
    fail_above: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 if more than this percentage of tokens/s is lost, beyond noise, or a run is missing."
        ),
    ] = None,
) -> None:
    """Say what became faster or slower between two files, and whether that is more than noise."""
    from chancellor.cli.bench_compare import run

    run(old, new, as_json=as_json, fail_above=fail_above)


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
