"""How well does a model predict text when quantised: on vLLM's kernels, and by TorchAO's own arithmetic?

python bench/perplexity.py --text questions.jsonl --schemes none,int8,int4wo --tokens 51200 --json FILE
python bench/perplexity.py --random 2048x8 --engines vllm,vllm-saved,transformers --at-once 6

The text is a file of lines, or of JSON objects with a "prompt"; with --random WIDTHxLAYERS the model has random
weights, and the text random tokens. Each scheme runs in vLLM (with the plug-in; `vllm-saved` loads a quantised
checkpoint, `vllm` quantises at load, `vllm-2-gpus` does so in two ranks) and in transformers (TorchAO's tensors, or
where TorchAO has no kernel for them, their dequantised values), in processes of their own.

Perplexity is exp of the mean negative log probability of each token after the first of its window; agreement is the
share of places where the likeliest next token is that of the unquantised model in the same engine. Between two
engines of one scheme, the root mean square of the differences of those log probabilities is set beside the scheme's
own: what it changes against the unquantised model.
"""

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WINDOW = 512
VOCABULARY = 32_000  # of random models

ENGINES = "of vllm, vllm-compiled, vllm-saved, vllm-2-gpus, transformers"


def windows(text: Path, tokenizer: Any, tokens: int) -> list[list[int]]:
    """Return the text in windows of equal length."""
    lines = text.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not at every line separator of Unicode
    lines = [json.loads(line)["prompt"] if line.startswith("{") else line for line in lines]
    ids: list[int] = []
    for line in lines:
        ids += tokenizer(line + "\n\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= tokens:
            break
    return [ids[start : start + WINDOW] for start in range(0, min(tokens, len(ids)) - WINDOW + 1, WINDOW)]


def random_model(folder: Path, text: str) -> str:
    """Save a Llama of this width and number of layers with random weights."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))  # no checkpoint is complete without
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    width, layers = (int(number) for number in text.split("x"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        max_position_embeddings=2 * WINDOW,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def saved(folder: str, scheme: str, dtype: str) -> str:
    """Return the folder of a quantised checkpoint."""
    from chancellor.catalog import ModelSpec
    from chancellor.quantization import prepare

    return str(prepare(ModelSpec(name="saved", source=folder, scheme=scheme, trinity=96), dtype).folder)


def in_vllm(
    folder: str, scheme: str, dtype: str, parts: list[list[int]], ranks: int = 1, *, compiled: bool = False
) -> tuple[list[float], list[int]]:
    """Return the negative log probability and the likeliest token of each place."""
    import torch
    from vllm import LLM, SamplingParams

    more: dict[str, Any] = {} if scheme in ("none", "saved") else {"quantization": f"torchao-{scheme}"}
    if torch.cuda.is_available():  # others may run beside it
        more |= {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 2**30}
    llm = LLM(
        folder,
        dtype=dtype,
        max_model_len=WINDOW + 8,
        max_num_seqs=8,
        enforce_eager=not compiled,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        tensor_parallel_size=ranks,
        **more,
    )
    losses: list[float] = []
    likeliest: list[int] = []
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": part} for part in parts], sampling, use_tqdm=False)
    for part, output in zip(parts, outputs, strict=True):
        for token, found in zip(part[1:], output.prompt_logprobs[1:], strict=True):
            losses.append(-found[token].logprob)
            likeliest.append(next(other for other, one in found.items() if one.rank == 1))
    return losses, likeliest


def in_transformers(folder: str, scheme: str, dtype: str, parts: list[list[int]]) -> tuple[list[float], list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    from chancellor.quantization import SCHEMES
    from chancellor.quantization.int4 import dequantize_int4

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    for name, layer in model.named_modules():
        if scheme == "none" or not isinstance(layer, torch.nn.Linear) or name.endswith("lm_head"):
            continue
        weight: Any = SCHEMES[scheme].quantize(layer.weight.data)
        if scheme.startswith("int4"):  # TorchAO needs a library of its own for these
            weight = dequantize_int4(weight)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    losses: list[float] = []
    likeliest: list[int] = []
    with torch.inference_mode():
        for start in range(0, len(parts), 4):
            ids = torch.tensor(parts[start : start + 4], device=device)
            logits = model(ids).logits[:, :-1].float().flatten(0, 1)
            wanted = ids[:, 1:].flatten()
            losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none").tolist()
            likeliest += logits.argmax(-1).tolist()
    return losses, likeliest


def measured(
    engine: str, scheme: str, folder: str, dtype: str, parts: list[list[int]]
) -> tuple[list[float], list[int]]:
    """Run one engine in a process of its own: this program once more, for one row."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as room:
        task = Path(room) / "task.json"
        task.write_text(json.dumps([engine, folder, scheme, dtype, parts]), encoding="utf-8")
        code = subprocess.run([sys.executable, __file__, "--task", str(task)], check=False).returncode
        done = task.with_suffix(".done")  # some engines fail while they exit, with all their work done
        if not done.is_file():
            raise RuntimeError(f"it ended with code {code}")
        losses, likeliest = json.loads(done.read_text(encoding="utf-8"))
    print(f"{engine}, {scheme}: done after {time.perf_counter() - began:.0f} s", flush=True)
    return losses, likeliest


def do_task(task: Path) -> None:
    engine, folder, scheme, dtype, parts = json.loads(task.read_text(encoding="utf-8"))
    if engine == "vllm-saved" and scheme != "none":
        found = in_vllm(saved(folder, scheme, dtype), "saved", dtype, parts)
    elif engine == "transformers":
        found = in_transformers(folder, scheme, dtype, parts)
    else:
        ranks = 2 if engine == "vllm-2-gpus" else 1
        found = in_vllm(folder, scheme, dtype, parts, ranks, compiled=engine == "vllm-compiled")
    task.with_suffix(".done").write_text(json.dumps(found), encoding="utf-8")


def root_mean_square(ours: list[float], theirs: list[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours))


def same(ours: list[int], theirs: list[int]) -> float:
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def compared(found: dict[tuple[str, str], tuple[list[float], list[int]]]) -> tuple[list[Any], list[Any]]:
    """Return a row for each engine and scheme, and one for each two engines of a scheme."""
    rows: list[dict[str, Any]] = []
    for (engine, scheme), (losses, likeliest) in found.items():
        row = {"engine": engine, "scheme": scheme, "perplexity": math.exp(sum(losses) / len(losses))}
        if (base := found.get((engine, "none"))) is not None:
            row |= {"agreement": same(likeliest, base[1]), "rms": root_mean_square(losses, base[0])}
        rows.append(row)
        print(
            ", ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()), flush=True
        )
    pairs: list[dict[str, Any]] = []
    for one, other in itertools.combinations(found, 2):
        if one[1] == other[1]:
            (ours, our_likeliest), (theirs, their_likeliest) = found[one], found[other]
            quotient = math.exp((sum(ours) - sum(theirs)) / len(ours))
            pair = {"scheme": one[1], "engine": one[0], "against": other[0], "perplexity_ratio": quotient}
            pair |= {"agreement": same(our_likeliest, their_likeliest), "rms": root_mean_square(ours, theirs)}
            pairs.append(pair)
            print(
                f"{one[1]}, {one[0]} / {other[0]}: perplexity {quotient - 1:+.3%}, agreement {pair['agreement']:.2%}, "
                f"rms {pair['rms']:.4f}",
                flush=True,
            )
    return rows, pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an unquantised checkpoint; the demo model by default")
    parser.add_argument("--random", metavar="WIDTHxLAYERS", help="a model with random weights instead")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--schemes", default="none,int8,int4wo")
    parser.add_argument("--engines", default="vllm,transformers", help=ENGINES)
    parser.add_argument("--at-once", type=int, default=1, help="rows that run at the same time")
    parser.add_argument("--tokens", type=int, default=51_200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.task:
        do_task(options.task)
        return
    if options.text is None and options.random is None:
        parser.error("--text is missing: a file of lines, or of JSON objects with a prompt.")

    from chancellor.bench.machine import Machine
    from chancellor.engines.vllm_args import process_environment

    os.environ.update(process_environment())
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    with tempfile.TemporaryDirectory() as room, ThreadPoolExecutor(options.at_once) as executor:
        folder, parts = subject(options, Path(room))
        rows = list(itertools.product(options.engines.split(","), options.schemes.split(",")))
        done = {row: executor.submit(measured, *row, folder, options.dtype, parts) for row in rows}
        found = {row: future.result() for row, future in done.items() if future.exception() is None}
    for row in rows:
        if row not in found:
            print(f"{', '.join(row)} failed: {done[row].exception()}", flush=True)
    results, pairs = compared(found)
    if options.json:
        about = {"machine": Machine.this().model_dump(), "tokens": len(parts) * (WINDOW - 1), "dtype": options.dtype}
        about |= {"model": options.random or options.model or "smollm2-135m"}
        content = {**about, "results": results, "pairs": pairs}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def subject(options: argparse.Namespace, room: Path) -> tuple[str, list[list[int]]]:
    """Return the folder of the model, and the text in windows."""
    if options.random:
        draw = random.Random(0)
        tokens = [draw.randrange(VOCABULARY) for _ in range(options.tokens)]
        parts = [tokens[start : start + WINDOW] for start in range(0, options.tokens - WINDOW + 1, WINDOW)]
        os.environ["CHANCELLOR_CACHE_DIR"] = str(room / "cache")  # for its quantised checkpoints
        return random_model(room / "random", options.random), parts

    from transformers import AutoTokenizer

    from chancellor.catalog import Catalog
    from chancellor.quantization import prepare

    folder = options.model or str(prepare(Catalog.demo()["smollm2-135m"], options.dtype).folder)
    return folder, windows(options.text, AutoTokenizer.from_pretrained(folder), options.tokens)


if __name__ == "__main__":
    main()
