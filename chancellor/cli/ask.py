"""`chancellor ask`: the answer streamed, then a table of the decision and the metrics."""

import asyncio
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from chancellor.answer import Answer, prepare_question
from chancellor.cli.terminal import Terminal, terminal

__all__ = ["run"]


def run(question: str, config: Path | None, context: dict[str, Any], *, as_json: bool) -> None:
    """Ask and print."""
    graph, state, settings = prepare_question(question, config, context)

    async def answer(user: Terminal) -> Answer:
        # Async, because a sync stream waits for its worker thread: Ctrl-C would come through after the answer.
        with user.working("choosing a model") as status:
            if as_json:
                return Answer.of(await graph.ainvoke(state, context=settings))
            final: Any = None
            async for mode, payload in graph.astream(state, context=settings, stream_mode=["messages", "values"]):
                if mode == "values":
                    final = payload
                elif text := str(payload[0].text):  # type: ignore[union-attr]
                    status.stop()
                    user.out.file.write(text)
                    user.out.file.flush()
            return Answer.of(final)

    with terminal() as user:
        made = asyncio.run(answer(user))
        if as_json:
            user.out.file.write(json.dumps(made.as_dict(), ensure_ascii=False) + "\n")
        else:
            user.out.file.write("\n")
            user.out.file.flush()
            _show(user, made)


def _show(user: Terminal, answer: Answer) -> None:
    metrics, decision = answer.metrics, answer.decision
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()

    def row(label: str, value: str) -> None:
        table.add_row(label, escape(value))

    row("model", f"{answer.model_used} ({metrics['engine']}, {metrics['quantization'] or 'unquantised'})")
    row("why", decision["reason"])
    row("complexity", f"{answer.complexity['level']} ({'; '.join(answer.complexity['reasons'])})")
    row("Trinity", f"{answer.trinity_score:g}")
    row("inference time", _seconds(answer.inference_time))
    row("first token after", _seconds(metrics["time_to_first_token_s"]))
    row("tokens", f"{metrics['input_tokens']} in, {metrics['output_tokens']} out")
    rate = metrics["tokens_per_s"]
    row("tokens/s", "unknown" if rate is None else f"{rate:.1f}")
    for label, value in (("memory", metrics["process_memory_mib"]), ("GPU memory", metrics["gpu_memory_mib"])):
        if value is not None:
            row(label, f"{value:,.0f} MiB")
    for fallback in metrics["fallbacks"]:
        row("fallback", f"{fallback['step']}, to {fallback['to']}: {fallback['reason']}")
    user.err.print()
    user.err.print(table)


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f} s"
