"""transformers' process stopped under more than its pipe holds."""

from pathlib import Path

import pytest

from tests.integration.faults import run
from tests.tiny import make_model

pytestmark = pytest.mark.engine


def test_a_long_queue_for_a_stopped_process_holds_nobody_up(tmp_path: Path) -> None:
    found = run(
        """
        settle("transformers")
        model = spec("tiny", model.source, kind="transformers")
        other = spec("other", model.source, kind="transformers", max_queue=999)

        async def ask(which, number):
            return await text(pool.agenerate(which, request(f"{number} " + "long " * 180, max_tokens=3)))

        async def main():
            await pool.astart(model)
            await pool.astart(other)
            engine = await pool.aengine(model)
            os.kill(engine.process_ids()[0], signal.SIGSTOP)
            many = [asyncio.create_task(ask(model, number)) for number in range(300)]
            await asyncio.sleep(1)
            found["other"] = await ask(other, 0) != ""  # while the stopped one has not been noticed
            found["waiting"] = sum(not task.done() for task in many)
            answers = await asyncio.gather(*many)
            found["answered"] = sum(answer != "" for answer in answers)

        asyncio.run(main())
        """,
        make_model(tmp_path / "model", context=4096),
    )
    assert found["other"]
    assert found["waiting"] == 300
    assert found["answered"] == 300
