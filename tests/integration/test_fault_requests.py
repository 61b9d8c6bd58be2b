"""Real engines, and a request that cannot end as it should: no time, no engine any more, nobody to keep its state."""

from pathlib import Path

import pytest

from tests.integration.faults import run
from tests.tiny import make_model

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("requests") / "model", context=4096)


@pytest.mark.parametrize("frontend", ["thread", "process"])
def test_fifty_milliseconds_for_a_cold_engine_and_for_a_warm_one(model: Path, frontend: str) -> None:
    found = run(
        f"""
        from chancellor.engines.pool import engine_of
        starts = []

        def counted(entry):
            starts.append(entry.name)
            return engine_of(entry)

        def late():
            try:
                return [len(list(pool.generate(model, request(max_tokens=800, timeout_s=0.05)))), "deltas"]
            except errors.GenerationTimeoutError as error:
                return str(error)

        settle({frontend!r})
        pool = EnginePool(counted)
        model = spec("tiny", model.source, frontend={frontend!r})
        found["cold"] = late()
        found["then"] = sum(len(delta.token_ids) for delta in pool.generate(model, request(max_tokens=5)))
        found["warm"] = [late() for _ in range(3)]
        found["next"] = sum(len(delta.token_ids) for delta in pool.generate(model, request(max_tokens=5)))
        until = time.monotonic() + 60
        while (now := pool.stats()["tiny"]).running and time.monotonic() < until:
            list(pool.generate(model, request(max_tokens=1)))  # figures come with steps
        found["idle"] = [now.running, now.waiting]
        found["starts"] = starts
        """,
        model,
    )
    assert "not there after 0.05 s" in found["cold"]
    assert "Its start goes on" in found["cold"]
    for warm in found["warm"]:
        assert "not there after 0.05 s" in warm
        assert "start" not in warm
    assert (found["then"], found["next"], found["idle"]) == (5, 5, [0, 0])
    assert found["starts"] == ["tiny"]  # the next question waited for the one that the first had begun


def test_an_answer_whose_engine_is_killed_twice_ends_with_what_had_come(model: Path) -> None:
    found = run(
        """
        model = spec("tiny", model.source, max_model_len=4096)
        calm = "".join(delta.text for delta in pool.generate(model, request("What is 3 plus two?", max_tokens=300)))
        settle()

        async def twice():
            came, tokens, killed = "", 0, []
            # Far more than can be there before the signal is.
            asked = request("What is 3 plus two?", max_tokens=3900)
            try:
                async for delta in pool.agenerate(model, asked):
                    came, tokens = came + delta.text, tokens + len(delta.token_ids)
                    if len(killed) == (delta.model is not None):  # which is said once there was a step
                        engine = await pool.aengine(model)
                        killed.append(engine.process_ids()[-1])
                        os.kill(killed[-1], signal.SIGKILL)
            except errors.EngineDiedError as error:
                return [came, error.partial, tokens, str(error), len(set(killed))]

        found["ended"] = asyncio.run(twice())
        found["calm"] = calm
        """,
        model,
    )
    came, partial, tokens, message, killed = found["ended"]
    assert killed == 2
    assert partial == came
    assert 2 <= tokens < 3900
    both = min(len(came), len(found["calm"]))
    assert both >= 1
    assert came[:both] == found["calm"][:both]
    assert "has died 2 times under this request" in message
    assert f"{tokens} tokens of the answer had come" in message


def test_a_checkpointer_that_fails_at_any_of_its_writes(model: Path) -> None:
    found = run(
        """
        from langgraph.checkpoint.memory import InMemorySaver
        from chancellor import ChatModels, create_chancellor
        from chancellor.nodes import generation_node

        class Failing(InMemorySaver):
            puts, fails_at = 0, None

            def put(self, *arguments, **named):
                self.puts += 1
                if self.puts == self.fails_at:
                    raise OSError("No space left for the checkpoint")
                return super().put(*arguments, **named)

        saver, catalog = Failing(), Catalog([model])
        builder = create_chancellor(catalog, generate=generation_node(ChatModels(catalog, pool=pool)))
        graph = builder.compile(checkpointer=saver)
        context = {"max_tokens": 20, "temperature": 0}

        def ask(thread, wait):
            asked = [{"messages": [("user", "What is two plus two?")]}, {"configurable": {"thread_id": thread}}]
            saver.puts = 0
            if wait:
                made = asyncio.run(graph.ainvoke(*asked, context=context))
            else:
                made = graph.invoke(*asked, context=context)
            return made["messages"][-1].text

        calm = ask("calm", False)
        found["puts"], found["calm"] = saver.puts, calm
        engine = asyncio.run(pool.aengine(model))
        ids = engine.process_ids()
        settle()
        found["errors"], found["next"] = [], []
        for wait in (False, True):
            for number in range(1, found["puts"] + 1):
                saver.fails_at = number
                thread = f"{wait} {number}"
                try:
                    found["errors"].append(ask(thread, wait))
                except Exception as error:
                    found["errors"].append(f"{type(error).__name__}: {error}")
                saver.fails_at = None
                # The conversation that could not be kept, and one of which nothing is known.
                found["next"].append([ask(thread, wait) != "", ask(f"{thread} anew", wait) == calm])
        until = time.monotonic() + 60
        while (now := engine.stats()).running and time.monotonic() < until:
            list(pool.generate(model, request(max_tokens=1)))  # figures come with steps
        found["idle"] = [now.running, now.waiting, sum(one.users for one in pool._residents._all.values())]
        found["same"] = engine.healthy() and engine.process_ids() == ids
        """,
        model,
    )
    assert found["puts"] >= 3
    assert found["calm"]
    assert found["errors"] == ["OSError: No space left for the checkpoint"] * (2 * found["puts"])
    assert found["next"] == [[True, True]] * (2 * found["puts"])
    assert found["idle"] == [0, 0, 0]
    assert found["same"]  # engine, through all of it
