"""How well does a model predict real text when quantised: on vLLM's kernels, and by TorchAO's own arithmetic?

python bench/perplexity.py --text questions.jsonl --schemes none,int8,int4wo --tokens 51200 --json FILE

The text is a file of lines, or of JSON objects with a "prompt". Each scheme runs in vLLM (with the plug-in) and in
transformers (TorchAO's tensors, or where TorchAO has no kernel for them, their dequantised values), in processes of
their own. Perplexity is exp of the mean negative log probability of each token after the first of its window;
agreement is the share of places where the likeliest next token is that of the unquantised model in the same engine.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WINDOW = 512


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


def in_vllm(folder: str, scheme: str, dtype: str, parts: list[list[int]]) -> tuple[float, list[int]]:
    """Return the mean negative log probability, and the likeliest token of each place."""
    from vllm import LLM, SamplingParams

    quantization = {} if scheme == "none" else {"quantization": f"torchao-{scheme}"}
    llm = LLM(
        folder,
        dtype=dtype,
        max_model_len=WINDOW + 8,
        max_num_seqs=8,
        enforce_eager=True,
        enable_prefix_caching=False,
        **quantization,
    )
    total, count, likeliest = 0.0, 0, []
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": part} for part in parts], sampling, use_tqdm=False)
    for part, output in zip(parts, outputs, strict=True):
        for token, found in zip(part[1:], output.prompt_logprobs[1:], strict=True):
            total -= found[token].logprob
            count += 1
            likeliest.append(next(other for other, one in found.items() if one.rank == 1))
    return total / count, likeliest


def in_transformers(folder: str, scheme: str, dtype: str, parts: list[list[int]]) -> tuple[float, list[int]]:
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
    total, count, likeliest = 0.0, 0, []
    with torch.inference_mode():
        for start in range(0, len(parts), 4):
            ids = torch.tensor(parts[start : start + 4], device=device)
            logits = model(ids).logits[:, :-1].float().flatten(0, 1)
            wanted = ids[:, 1:].flatten()
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            count += wanted.numel()
            likeliest += logits.argmax(-1).tolist()
    return total / count, likeliest


def measured(engine: str, scheme: str, folder: str, dtype: str, parts: list[list[int]]) -> tuple[float, list[int]]:
    """Run one engine in a process of its own: this program once more, for one row."""
    with tempfile.TemporaryDirectory() as room:
        task = Path(room) / "task.json"
        task.write_text(json.dumps([engine, folder, scheme, dtype, parts]), encoding="utf-8")
        subprocess.run([sys.executable, __file__, "--task", str(task)], check=True)
        mean, likeliest = json.loads(task.with_suffix(".done").read_text(encoding="utf-8"))
        return mean, likeliest


def do_task(task: Path) -> None:
    engine, *rest = json.loads(task.read_text(encoding="utf-8"))
    found = (in_vllm if engine == "vllm" else in_transformers)(*rest)
    task.with_suffix(".done").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an unquantised checkpoint; the demo model by default")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--schemes", default="none,int8,int4wo")
    parser.add_argument("--engines", default="vllm,transformers")
    parser.add_argument("--tokens", type=int, default=51_200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.task:
        do_task(options.task)
        return
    if options.text is None:
        parser.error("--text is missing: a file of lines, or of JSON objects with a prompt.")

    from transformers import AutoTokenizer

    from chancellor.bench.machine import Machine
    from chancellor.catalog import Catalog
    from chancellor.engines.vllm_args import process_environment
    from chancellor.quantization import prepare

    folder = options.model or str(prepare(Catalog.demo()["smollm2-135m"], options.dtype).folder)
    parts = windows(options.text, AutoTokenizer.from_pretrained(folder), options.tokens)
    os.environ.update(process_environment())
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    rows: list[dict[str, Any]] = []
    base: dict[str, list[int]] = {}
    for engine in options.engines.split(","):
        for scheme in options.schemes.split(","):
            began = time.perf_counter()
            mean, likeliest = measured(engine, scheme, folder, options.dtype, parts)
            base.setdefault(engine, likeliest)  # the first scheme is the one to agree with
            same = sum(a == b for a, b in zip(likeliest, base[engine], strict=True)) / len(likeliest)
            rows.append({"engine": engine, "scheme": scheme, "perplexity": math.exp(mean), "agreement": same})
            print(
                f"{engine}, {scheme}: {math.exp(mean):.4f}, {same:.2%}, {time.perf_counter() - began:.0f} s", flush=True
            )
    for scheme in options.schemes.split(","):
        found = {row["engine"]: row["perplexity"] for row in rows if row["scheme"] == scheme}
        if len(found) == 2:
            print(f"{scheme}: vLLM / TorchAO's own {found['vllm'] / found['transformers'] - 1:+.3%}")
    if options.json:
        about = {"machine": Machine.this().model_dump(), "tokens": len(parts) * (WINDOW - 1), "dtype": options.dtype}
        options.json.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
