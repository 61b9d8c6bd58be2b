"""vLLM with its front end in a process of its own: the same answers, and real faults against both processes."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.faults import HEAD, run
from tests.tiny import make_model

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("apart") / "model", context=4096)


def test_the_answers_are_those_of_an_engine_in_a_thread(model: Path) -> None:
    found = run(
        """
        from chancellor.engines import Guide
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        schema["additionalProperties"] = False
        asked = {
            "whole": request(max_tokens=40, stream=False),
            "streamed": request(max_tokens=40),
            "logprobs": request(max_tokens=5, logprobs=2),
            "guided": request(max_tokens=60, ignore_eos=False, guide=Guide("json_schema", schema)),
            "seeded": request(max_tokens=40, temperature=1.0, seed=7),
            "raw": GenerationRequest(prompt=(5, 6, 7), max_tokens=20, temperature=0.0, ignore_eos=True),
        }

        def answer(where, name):
            deltas = list(pool.generate(spec("tiny", model.source, frontend=where), asked[name]))
            last = deltas[-1]
            return ["".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids],
                    [round(one.logprob, 4) for delta in deltas for one in delta.logprobs],
                    last.finish_reason, last.input_tokens, last.output_tokens, last.engine, last.quantization]

        apart = {name: answer("process", name) for name in asked}
        found["light"] = [name for name in ("torch", "vllm", "transformers") if name in sys.modules]
        settle("thread")
        engine = asyncio.run(pool.aengine(spec("tiny", model.source, frontend="process")))
        found["facts"], found["inner"] = engine.facts(), engine.inner() is None
        found["words"] = engine.tokenizer().decode([5, 6, 7])
        found["same"] = {name: apart[name] == answer("thread", name) for name in asked}
        model = spec("tiny", model.source, frontend="process")
        """,
        model,
    )
    assert found["light"] == []  # the program has imported none of them
    assert found["facts"]["kv_cache_tokens"] > 0
    assert found["inner"]
    assert found["words"]
    assert found["same"] == dict.fromkeys(["whole", "streamed", "logprobs", "guided", "seeded", "raw"], True)


def test_requests_outlive_either_process(model: Path) -> None:
    found = run(
        """
        model = spec("tiny", model.source, frontend="process")

        async def one(number):
            # Of none of these answers is a token nearly as likely as another, which a batch of another size may prefer.
            asked = request(f"What is {number} plus two?", stream=number % 4 != 3, max_tokens=300)
            deltas = [delta async for delta in pool.agenerate(model, asked)]
            tokens = sum(len(delta.token_ids) for delta in deltas)
            text = "".join(delta.text for delta in deltas)
            return text, tokens, deltas[-1].output_tokens, [step["step"] for step in deltas[-1].fallbacks]

        async def all_of_them(fault=None, which=0):
            tasks = [asyncio.create_task(one(number)) for number in range(32)]
            if fault:
                engine = await pool.aengine(model)
                before = engine.stats().output_tokens or 0
                while engine.stats().running < 30 or (engine.stats().output_tokens or 0) < before + 640:
                    await asyncio.sleep(0.005)
                os.kill(engine.process_ids()[which], fault)
            return await asyncio.gather(*tasks)

        calm = asyncio.run(all_of_them())
        for fault in (signal.SIGKILL, signal.SIGSTOP):
            for which in (0, -1):  # the front end, and what computes
                began = time.monotonic()
                rough = asyncio.run(all_of_them(fault, which))
                found[f"{fault.name} {which}"] = {
                    "seconds": time.monotonic() - began,
                    "same": sum(one[0] == other[0] for one, other in zip(calm, rough)),
                    "tokens": sorted({one[1] for one in rough} | {one[2] for one in rough}),
                    "steps": sorted({" ".join(one[3]) for one in rough}),
                }
        found["next"] = asyncio.run(text(pool.agenerate(model, request(max_tokens=5)))) != ""
        """,
        model,
        timeout_s=480,
    )
    for fault in ("SIGKILL 0", "SIGKILL -1", "SIGSTOP 0", "SIGSTOP -1"):
        seen = found[fault]
        assert (seen["same"], seen["tokens"], seen["steps"]) == (32, [300], ["restart"]), fault
    assert found["next"]


def test_callers_who_leave_free_their_cache(model: Path) -> None:
    found = run(
        """
        import random
        model = spec("tiny", model.source, frontend="process")

        async def main():
            async def one(number):
                asked = request(f"Question {number}", stream=bool(number % 2), max_tokens=60)
                return [delta async for delta in pool.agenerate(model, asked)]

            tasks = [asyncio.create_task(one(number)) for number in range(150)]
            await asyncio.sleep(1)
            for task in random.Random(1).sample(tasks, 50):
                task.cancel()
                await asyncio.sleep(0.002)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            engine = await pool.aengine(model)
            until = time.monotonic() + 20
            while (engine.stats().running or engine.stats().kv_cache_usage) and time.monotonic() < until:
                await asyncio.sleep(0.05)
                await one(0)  # figures come with steps
            found["answered"] = sum(isinstance(one, list) and one[-1].output_tokens == 60 for one in answers)
            found["errors"] = sorted({type(one).__name__ for one in answers if not isinstance(one, list)})
            found["kept"] = [len(engine._inboxes), engine.stats().running, engine.stats().kv_cache_usage]

        asyncio.run(main())
        """,
        model,
    )
    assert found["answered"] >= 100
    assert found["errors"] in ([], ["CancelledError"])
    assert found["kept"] == [0, 0, 0]


@pytest.mark.parametrize(("when", "which"), [(1, 0), (2, 0), (2, 1)], ids=["early", "front-end", "core"])
def test_a_start_that_hangs_is_ended(model: Path, when: int, which: int) -> None:
    found = run(
        f"""
        def stop():
            started({when})[{which}].suspend()

        settle("transformers")
        model = spec("tiny", model.source, frontend="process")
        threading.Thread(target=stop).start()
        deltas = list(pool.generate(model, request(max_tokens=5), Ladder(FallbackOptions())))
        found["engine"], found["steps"] = deltas[-1].engine, deltas[-1].fallbacks
        found["next"] = list(pool.generate(model, request(max_tokens=5)))[-1].engine
        """,
        model,
    )
    (step,) = found["steps"]
    assert (step["step"], step["cause"], found["engine"]) == ("transformers", "engine", "transformers")
    assert "its process is stopped" in step["reason"]
    assert found["next"] == "vllm"


def test_errors_are_those_of_an_engine_in_a_thread(model: Path, tmp_path: Path) -> None:
    broken = make_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    found = run(
        f"""
        settle("thread")

        def failure(where, source, **options):
            try:
                list(pool.generate(spec("tiny", source, frontend=where), request(**options)))
            except errors.ChancellorError as error:
                return [type(error).__name__, error.message]

        cases = {{
            "broken": ({str(broken)!r}, {{}}),
            "long": (model.source, {{"text": "word " * 2000}}),
            "guide": (model.source, {{"guide": __import__("chancellor").engines.Guide("regex", "(")}}),
        }}
        for name, (source, options) in cases.items():
            found[name] = [failure(where, source, **options) for where in ("process", "thread")]

        pending = threading.Thread(target=lambda: found.update(closed=failure("process", model.source, max_tokens=900)))
        pending.start()
        engine = asyncio.run(pool.aengine(spec("tiny", model.source, frontend="process")))
        while not engine.stats().running:
            time.sleep(0.01)
        pool.close()
        pending.join()

        model = spec("tiny", model.source, frontend="process")
        starting = threading.Thread(target=lambda: found.update(interrupted=failure("process", model.source)))
        starting.start()
        started(2)
        began = time.monotonic()
        pool.close()
        starting.join()
        found["seconds"] = time.monotonic() - began
        """,
        model,
    )
    for name in ("broken", "long", "guide"):
        apart, here = found[name]
        assert apart is not None
        assert apart[0] == here[0], (name, apart, here)
    assert found["closed"][0] == "EngineDiedError"
    assert found["interrupted"] is not None
    assert found["seconds"] < 30


def test_a_killed_parent_leaves_no_orphan(model: Path) -> None:
    script = (
        HEAD.format(model=str(model))
        + 'model = spec("tiny", model.source, frontend="process")\n'
        + "list(pool.generate(model, request(max_tokens=2)))\n"
        + "print(*[one.pid for one in psutil.Process().children(recursive=True)], flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) >= 3
        alive = [psutil.Process(pid) for pid in children]
        process.kill()
    _, left = psutil.wait_procs(alive, timeout=60)
    assert left == []


def test_nothing_of_it_is_on_the_terminal(model: Path) -> None:
    script = HEAD.format(model=str(model)) + (
        'model = spec("tiny", model.source, frontend="process")\n'
        "print(list(pool.generate(model, request(max_tokens=2)))[-1].output_tokens)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True)
    assert ended.stdout == "2\n"
    assert ended.stderr == ""
