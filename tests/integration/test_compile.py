"""torch.compile on a CPU: the same answers, and a second start that compiles nothing."""

from pathlib import Path

import pytest

from chancellor.engines.hardware import why_not_compile
from tests.integration.faults import run
from tests.tiny import make_model

pytestmark = pytest.mark.engine


@pytest.mark.skipif(why_not_compile("float32") is not None, reason="nothing compiles here")
def test_compiled_engines_answer_as_others_do_and_start_warm(tmp_path: Path) -> None:
    found = run(
        """
        from pathlib import Path

        settle("thread")
        cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        for eager in (True, False, False):
            model = spec("tiny", model.source, enforce_eager=eager, quantize_lm_head=True, dtype="float32")
            model = model.model_copy(update={"scheme": "int8"})
            deltas = list(pool.generate(model, request(max_tokens=30)))
            found.setdefault("tokens", []).append([token for delta in deltas for token in delta.token_ids])
            found.setdefault("fallbacks", []).append(deltas[-1].fallbacks)
            asyncio.run(pool.astop(model))
            found.setdefault("compiled", []).append(len(list(cache.rglob("*.so"))))
        """,
        make_model(tmp_path / "model"),
        again=False,
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"),
    )
    eager, cold, warm = found["tokens"]
    assert len(eager) == 30
    assert cold == warm
    assert eager[:4] == cold[:4]  # rounding to int8 may tell them apart later on
    assert found["fallbacks"] == [[], [], []]
    none, some, same = found["compiled"]
    assert none == 0
    assert some == same > 0
