"""Which TorchAO config a layer of vLLM's has: by its name, or by the names of the layers that vLLM fused into it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chancellor.quantization.vllm_plugin.formats import UnusableWeightError

__all__ = ["config_of"]


def config_of(prefix: str, config: Any, skipped: Sequence[str], fused: Mapping[str, Sequence[str]]) -> Any | None:
    """Return the config of a layer, or None if it is not quantised.

    Args:
        prefix: name of the layer, e.g. "model.layers.0.self_attn.qkv_proj".
        config: TorchAO config of the model; an FqnToConfig has rules for single layers.
        skipped: names, or parts of names, of layers that are not quantised.
        fused: names of the layers that vLLM fuses into one, e.g. {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}.

    Raises:
        UnusableWeightError: layers that vLLM fuses have different configs.
    """
    parent, _, last = prefix.rpartition(".")
    names = [f"{parent}.{shard}" if parent else shard for shard in fused.get(last, ())]
    own = _rule(prefix, config, skipped, default=not names)
    if own is not _NONE_SAID:
        return own
    configs = [_rule(name, config, skipped, default=True) for name in names]
    if any(other != configs[0] for other in configs[1:]):
        raise UnusableWeightError(
            f"vLLM runs {', '.join(names)} as one layer, but they have different TorchAO configs. "
            "Give them the same, or skip them all."
        )
    return None if configs[0] is _NONE_SAID else configs[0]


_NONE_SAID = object()


def _rule(name: str, config: Any, skipped: Sequence[str], *, default: bool) -> Any:
    """Return the config that is meant for this very name; without `default`, `_NONE_SAID` if only a default is."""
    from torchao.quantization import FqnToConfig

    if any(f".{skip}." in f".{name}." for skip in skipped):
        return None
    if not isinstance(config, FqnToConfig):
        return config if default else _NONE_SAID
    rules = config.fqn_to_config
    for key in (f"{name}.weight", name):
        if key in rules:
            return rules[key]
    for key in (f"{name}.weight", name):
        for pattern, found in rules.items():
            if pattern.startswith("re:") and re.fullmatch(pattern[3:], key):
                return found
    return rules.get("_default") if default else _NONE_SAID
