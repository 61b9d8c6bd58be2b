"""Does anything get lost?  Two models under mixed load for half an hour, while their engines are killed and stopped.

Every answer runs to its full length, so that a lost or doubled token shows: the tokens are counted, and the text has to
be what they decode to. Each minute or so something happens to one of the engines:
    kill      SIGKILL of its process; with --apart, which puts the second model's front end in one, of the front end
    stop      SIGSTOP of its process, which only the pool's watch can notice
    worker    SIGKILL of the process below it that computes
    close     it is closed and starts again with the next request

python bench/soak.py --minutes 30 --json soak.json
"""

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from chancellor import Catalog, EngineOptions, ModelSpec
from chancellor.bench.machine import Machine
from chancellor.engines import Delta, EnginePool, GenerationRequest, Guide
from chancellor.engines.hardware import default_frontend
from chancellor.engines.ladder import Ladder
from chancellor.errors import EngineBusyError, GenerationTimeoutError
from chancellor.fallbacks import FallbackOptions
from chancellor.resources import ProcessTree, give_back

FAULTS = ("kill", "stop", "worker", "close")
GUIDE = Guide("json_schema", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
console = Console()


def models(*, random_weights: bool, apart: bool) -> list[ModelSpec]:
    options = EngineOptions(kv_cache_gib=0.25, frontend="process" if apart else "thread")
    nano = ModelSpec(name="nano", source="shape:nano", trinity=96, engine=options)
    if random_weights:
        return [nano, nano.model_copy(update={"name": "nano-int8", "scheme": "int8"})]
    return [Catalog.demo()["smollm2-135m-int8"], nano]


class Soak:
    """The load, the faults, and what came of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.models = models(random_weights=options.random_weights, apart=options.apart)
        self.pool = EnginePool()
        self.ladder = Ladder(FallbackOptions())
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self.losses: list[str] = []
        self.slowest = 0.0
        self.tokens = 0
        self.until = 0.0
        self.before: dict[str, float] = {}

    async def ask(self, chance: random.Random) -> None:
        model = chance.choice(self.models)
        kind = chance.choices(("stream", "whole", "guided", "cancelled", "deadline"), (50, 25, 8, 12, 5))[0]
        size = chance.choice((8, 32, 128))
        asked = GenerationRequest(
            [{"role": "user", "content": f"Question {chance.random()}: why is the sky blue?"}],
            max_tokens=200 if kind == "guided" else size,
            temperature=chance.choice((0.0, 0.8)),
            stream=kind != "whole",
            ignore_eos=kind != "guided",
            guide=GUIDE if kind == "guided" else None,
            retries=3,  # a fault may hit the engine that takes over as well
            timeout_s=0.05 if kind == "deadline" else None,
        )
        began = time.monotonic()
        task = asyncio.create_task(self.answer(model, asked))
        try:
            if kind == "cancelled":
                await asyncio.wait({task}, timeout=chance.uniform(0, 1.5))
                task.cancel()
            deltas = await task
        except asyncio.CancelledError:
            self.counts["cancelled, as asked"] += 1
        except GenerationTimeoutError:
            self.counts["deadline, as asked" if kind == "deadline" else "lost"] += 1
        except EngineBusyError:
            self.counts["busy"] += 1
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            self.counts["lost"] += 1
            self.losses.append(f"{model.name} {kind}: {type(error).__name__}: {error}"[:500])
        else:
            self.counts["answered"] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            await self.check(model, asked, deltas)

    async def answer(self, model: ModelSpec, asked: GenerationRequest) -> list[Delta]:
        return [delta async for delta in self.pool.agenerate(model, asked, self.ladder)]

    async def check(self, model: ModelSpec, asked: GenerationRequest, deltas: list[Delta]) -> None:
        tokens = [token for delta in deltas for token in delta.token_ids]
        text = "".join(delta.text for delta in deltas)
        self.tokens += len(tokens)
        for step in deltas[-1].fallbacks:
            self.steps[f"{step['step']} after {step['cause']}"] += 1
        if asked.guide is not None:
            if deltas[-1].finish_reason == "stop":
                json.loads(text, strict=False)
            return
        tokenizer: Any = (await self.pool.aengine(model)).tokenizer()
        decoded = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        readable = "�" not in decoded  # else the end of a character is what may be missing
        if len(tokens) != asked.max_tokens or (readable and text.strip() != decoded.strip()):
            self.counts["wrong"] += 1
            self.losses.append(
                f"{model.name}: {len(tokens)} tokens of {asked.max_tokens}; {text!r} is not {decoded!r}"[:800]
            )

    async def worker(self, number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < self.until:
            await self.ask(chance)
            await asyncio.sleep(chance.expovariate(2))

    async def trouble(self) -> None:
        chance = random.Random(-1)
        turn = 0
        while time.monotonic() < self.until - self.options.every:
            await asyncio.sleep(self.options.every * chance.uniform(0.7, 1.3))
            model, fault = self.models[turn % len(self.models)], FAULTS[turn // len(self.models) % len(FAULTS)]
            turn += 1
            self.faults[fault] += 1
            console.print(f"{self.left():5.0f} s left  {fault:<7} {model.name:<20} {dict(self.counts)}")
            if fault == "close":
                await self.pool.astop(model)
                continue
            ids = (await self.pool.aengine(model)).process_ids()
            pid = ids[-1] if fault == "worker" else ids[0]
            os.kill(pid, signal.SIGSTOP if fault == "stop" else signal.SIGKILL)

    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    async def run(self) -> None:
        for model in self.models:
            await self.pool.astart(model)
        self.before = memory_mib()
        self.until = time.monotonic() + self.options.minutes * 60
        await asyncio.gather(self.trouble(), *(self.worker(number) for number in range(self.options.callers)))


def memory_mib() -> dict[str, float]:
    own = psutil.Process().memory_full_info()
    return {
        "program": round(own.rss / 2**20, 1),
        "program_uss": round(own.uss / 2**20, 1),
        "program_and_engines": ProcessTree().memory_mib() or 0.0,
        "free_on_the_machine": round(psutil.virtual_memory().available / 2**20, 1),
        "shared": round(psutil.disk_usage("/dev/shm").used / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--every", type=float, default=60.0, help="seconds from fault to fault")
    parser.add_argument("--random-weights", action="store_true", help="two models of random weights, for a quick look")
    parser.add_argument("--apart", action="store_true", help="the second model's front end has a process of its own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    soak = Soak(options)
    before_starting = memory_mib()
    began = time.monotonic()
    asyncio.run(soak.run())
    after_load = memory_mib()
    soak.pool.close()
    give_back()
    left = [one.pid for one in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]
    after = memory_mib()
    result: dict[str, Any] = {
        "machine": Machine.this().model_dump(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "callers": options.callers,
        "models": {model.name: model.engine.frontend or default_frontend() for model in soak.models},
        "requests": dict(soak.counts),
        "tokens": soak.tokens,
        "slowest_answer_s": round(soak.slowest, 1),
        "faults": dict(soak.faults),
        "steps_of_requests": dict(soak.steps),
        "losses": soak.losses,
        "memory_mib": {
            "before_the_first_start": before_starting,
            "engines_ready": soak.before,
            "after_the_load": after_load,
            "after_closing": after,
        },
        "engine_processes_left": left,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print_json(data={key: value for key, value in result.items() if key != "machine"})


if __name__ == "__main__":
    main()
