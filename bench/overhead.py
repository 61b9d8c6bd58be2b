"""What do the graph and the chat model cost?  An engine without a model, through each layer of ours, alternating.

The engine takes no time itself, so all that is measured is Python: ours, LangChain's and LangGraph's.
    call      one answer that nobody streams, one call at a time
    at once   all tokens are there as fast as the caller can take them; n callers at a time
    paced     a token every --step-ms for each of n callers, whether or not they keep up, as vLLM's engine process makes
              them. Each caller asks again when it is answered. "kept" is the time that the engine takes for an answer
              over what the caller sees: the share of the tokens/s that is left, calls and all

python bench/overhead.py --blocks 6 --json overhead.json
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

from chancellor import Catalog, ChatModels, ChatVLLM, ModelSpec, create_chancellor
from chancellor.bench.machine import Machine
from chancellor.engines import Delta, Engine, EnginePool, EngineStats, GenerationRequest
from chancellor.nodes import generation_node

QUESTION = [{"role": "user", "content": "What is two plus two?"}]
ANSWERS = 2
SPEC = ModelSpec(name="instant", source="none/instant", trinity=99.0, parameters=1)


class Instant(Engine):
    """Makes a token whenever it is due, and notes how many deltas it was asked for."""

    kind: ClassVar[str] = "instant"
    spec = SPEC
    step_s: ClassVar[float] = 0.0
    work_s: ClassVar[float] = 0.0
    deltas: ClassVar[int] = 0
    quantization = None

    async def start(self) -> None: ...

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        made, total, began = 0, request.max_tokens, time.perf_counter()
        while request.stream and made < total - 1:
            await asyncio.sleep(self.step_s)
            due = made + 1
            if self.step_s:  # the engine's process does not wait for this one: what has piled up comes in one
                due = max(due, min(total - 1, int((time.perf_counter() - began) / self.step_s)))
            Instant.deltas += 1
            busy_until = time.perf_counter() + Instant.work_s
            while time.perf_counter() < busy_until:
                pass
            yield Delta(" two" * (due - made), tuple(range(made, due)))
            made = due
        Instant.deltas += 1
        rest = tuple(range(made, total))
        yield Delta(" two" * len(rest), rest, finish_reason="length", input_tokens=9, output_tokens=total)

    def healthy(self) -> bool:
        return True

    def stats(self) -> EngineStats:
        return EngineStats(running=0, waiting=0, kv_cache_usage=0.0, peak_running=0)

    async def close(self) -> None: ...


class Layers:
    """Each layer as a function that takes a number of tokens."""

    def __init__(self) -> None:
        catalog = Catalog([SPEC], minimum_trinity_score=0.0)
        self.pool = pool = EnginePool(lambda _: Instant())
        chat = ChatVLLM(model=SPEC.name, catalog=catalog, pool=pool)
        nodes = generation_node(ChatModels(catalog, pool=pool))
        graph = create_chancellor(catalog, generate=nodes).compile()
        asked: Any = {"messages": QUESTION}
        messages: Any = {"stream_mode": "messages"}

        def request(tokens: int, *, stream: bool) -> GenerationRequest:
            return GenerationRequest(list(QUESTION), max_tokens=tokens, stream=stream)

        async def engine() -> None:
            _ = [delta async for delta in pool.agenerate(SPEC, request(99, stream=False))]

        self.plain: dict[str, Callable[[], Awaitable[Any]]] = {
            "engine": engine,
            "chat": lambda: chat.ainvoke(QUESTION),
            "graph": lambda: graph.ainvoke(asked),
        }
        self.streamed: dict[str, Callable[[int], AsyncIterator[Any]]] = {
            "engine": lambda tokens: pool.agenerate(SPEC, request(tokens, stream=True)),
            "chat": lambda tokens: chat.astream(QUESTION, max_tokens=tokens),
            "graph": lambda tokens: graph.astream(asked, context={"max_tokens": tokens}, **messages),
            "engine, sync": lambda tokens: walk(pool.generate(SPEC, request(tokens, stream=True))),
            "chat, sync": lambda tokens: walk(chat.stream(QUESTION, max_tokens=tokens)),
            "graph, sync": lambda tokens: walk(graph.stream(asked, context={"max_tokens": tokens}, **messages)),
        }


async def walk(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Cost(NamedTuple):
    us_per_token: float
    cpu_us_per_token: float
    tokens_per_s: float
    tokens_per_piece: float
    kept: float | None = None


async def stream(layer: Callable[[int], AsyncIterator[Any]], callers: int, tokens: int, step_s: float) -> Cost:
    answers = ANSWERS if step_s else 1
    seconds: list[float] = []

    async def one(number: int) -> int:
        await asyncio.sleep(number / callers * tokens * step_s)  # else all begin, and end, at the same time
        pieces = 0
        for _ in range(answers):
            began = time.perf_counter()
            pieces += len([piece async for piece in layer(tokens)])
            seconds.append(time.perf_counter() - began)
        return pieces

    Instant.step_s = step_s
    began, used = time.perf_counter(), time.process_time()
    pieces = sum(await asyncio.gather(*(one(number) for number in range(callers))))
    elapsed = sum(seconds) / callers if step_s else time.perf_counter() - began
    made, used = callers * answers * tokens, time.process_time() - used
    kept = answers * tokens * step_s / elapsed if step_s else None
    return Cost(elapsed / made * 1e6, used / made * 1e6, made / elapsed, made / pieces, kept)


async def call_ms(call: Callable[[], Awaitable[Any]], calls: int) -> float:
    clock = [time.perf_counter()]
    for _ in range(calls):
        await call()
        clock.append(time.perf_counter())
    return median(later - earlier for earlier, later in pairwise(clock)) * 1e3


def measure(options: argparse.Namespace) -> dict[str, Any]:
    layers = Layers()
    calls: dict[str, list[float]] = defaultdict(list)
    streams: dict[str, list[dict[str, Any]]] = defaultdict(list)
    asyncio.run(call_ms(layers.plain["graph"], 50))  # imports, caches
    for block in range(options.blocks):
        order = 1 if block % 2 == 0 else -1
        for name, call in list(layers.plain.items())[::order]:
            Instant.deltas = 0
            calls[name].append(asyncio.run(call_ms(call, options.calls)))
            assert Instant.deltas == options.calls, "Python ran for each token, though nobody streams"
        for callers in options.callers:
            for pace, step_s in (("at once", 0.0), ("paced", options.step_ms / 1e3)):
                tokens = options.tokens * (8 if callers == 1 and not step_s else 1)
                for name, layer in list(layers.streamed.items())[::order]:
                    if "sync" in name and (callers > 1 or step_s):
                        continue
                    found = asyncio.run(stream(layer, callers, tokens, step_s))
                    streams[f"{callers} {pace}: {name}"].append(found._asdict())
    layers.pool.close()
    return {"machine": Machine.this().model_dump(), "call_ms": calls, "streams": streams}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6, help="A B, B A, ...")
    parser.add_argument("--calls", type=int, default=100, help="answers that nobody streams, a block")
    parser.add_argument("--tokens", type=int, default=128, help="of a streamed answer")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--step-ms", type=float, default=25.0)
    parser.add_argument("--work-us", type=float, default=0.0, help="on the engines' thread for each delta, as vLLM has")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    Instant.work_s = options.work_us / 1e6
    result = measure(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    calls = {name: median(found) for name, found in result["call_ms"].items()}
    for name, found in result["call_ms"].items():
        more = calls[name] - calls["engine"]
        print(f"call: {name:<8} {calls[name]:6.2f} ms ({min(found):.2f} to {max(found):.2f}), adds {more:.2f} ms")
    print(f"{'stream':<28}{'us/token':>9}{'(low - high)':>18}{'CPU us':>9}{'tokens/s':>10}{'a piece':>9}{'kept':>7}")
    for name, blocks in result["streams"].items():
        middle = {key: median(one[key] for one in blocks) for key in Cost._fields[:4]}
        low, high = (pick(one["us_per_token"] for one in blocks) for pick in (min, max))
        kept = "" if blocks[0]["kept"] is None else f"{median(one['kept'] for one in blocks):7.1%}"
        columns = [f"{name:<28}{middle['us_per_token']:>9.1f}{f'({low:.1f} - {high:.1f})':>18}"]
        columns += [f"{middle['cpu_us_per_token']:>9.1f}{middle['tokens_per_s']:>10,.0f}"]
        print(*columns, f"{middle['tokens_per_piece']:>9.2f}{kept}", sep="")


if __name__ == "__main__":
    main()
