"""`chancellor ask`: the answer streamed, then a table of the decision and the metrics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from chancellor.answer import Answer, prepare_question
from chancellor.cli.terminal import Terminal, terminal

__all__ = ["run"]


def run(question: str, config: Path | None, context: dict[str, Any], *, as_json: bool) -> None:
    """Ask and print."""
    graph, state, settings = prepare_question(question, config, context)
    with terminal() as user:
        with user.working("choosing a model") as status:
            if as_json:
                answer = Answer.of(graph.invoke(state, context=settings))
            else:
                final: dict[str, Any] = {}
                stream: Iterator[Any] = graph.stream(state, context=settings, stream_mode=["messages", "values"])
                for mode, payload in stream:
                    if mode == "values":
                        final = payload
                    elif text := str(payload[0].text):
                        status.stop()
                        user.out.print(text, end="", markup=False)
                        user.out.file.flush()
                answer = Answer.of(final)
        if as_json:
            user.out.file.write(json.dumps(answer.as_dict(), ensure_ascii=False) + "\n")
        else:
            user.out.print()
            _show(user, answer)


def _show(user: Terminal, answer: Answer) -> None:
    metrics, decision = answer.metrics, answer.decision
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("model", f"{answer.model_used} ({metrics['engine']}, {metrics['quantization'] or 'unquantised'})")
    table.add_row("why", decision["reason"])
    table.add_row("complexity", f"{answer.complexity['level']} ({'; '.join(answer.complexity['reasons'])})")
    table.add_row("Trinity", f"{answer.trinity_score:g}")
    table.add_row("inference time", _seconds(answer.inference_time))
    table.add_row("first token after", _seconds(metrics["time_to_first_token_s"]))
    rate = metrics["tokens_per_s"]
    table.add_row("tokens", f"{metrics['input_tokens']} in, {metrics['output_tokens']} out")
    table.add_row("tokens/s", "unknown" if rate is None else f"{rate:.1f}")
    for label, value in (("memory", metrics["process_memory_mib"]), ("GPU memory", metrics["gpu_memory_mib"])):
        if value is not None:
            table.add_row(label, f"{value:,.0f} MiB")
    for fallback in metrics["fallbacks"]:
        table.add_row("fallback", fallback)
    user.err.print()
    user.err.print(table)


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"
