"""The plug-in by which vLLM runs TorchAO's weights on its own kernels."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping

from chancellor.doctor.finding import Finding, error, ok, warning
from chancellor.doctor.probes import Facts
from chancellor.quantization.vllm_plugin import PLUGIN

__all__ = ["plugin"]

_GROUP = "vllm.general_plugins"


def plugin(probes: Mapping[str, Facts]) -> Iterator[Finding]:
    """Look at whether vLLM finds it, may load it, and has loaded it."""
    found = importlib.metadata.entry_points(group=_GROUP, name=PLUGIN)
    allowed = os.environ.get("VLLM_PLUGINS")
    facts = probes.get("vllm", {})
    if not found:
        message = f"Chancellor's metadata has no entry point {PLUGIN} in {_GROUP}: vLLM cannot find its plug-in"
        yield error("plugin", message, "Install Chancellor again; from a checkout: pip install --no-deps -e .")
    elif allowed is not None and PLUGIN not in allowed.split(","):
        message = f"VLLM_PLUGINS is {allowed!r}, which keeps the plug-in out: models with a scheme do not start"
        yield error("plugin", message, f"export VLLM_PLUGINS={','.join(filter(None, [allowed, PLUGIN]))}")
    elif "plugin_error" in facts or facts.get("plugin") is False:
        reason = facts.get("plugin_error", "another plug-in has taken its place")
        message = f"The plug-in does not fit this vLLM, and TorchAO's weights run on its slow stock path: {reason}"
        yield warning("plugin", message, "Install a release of vLLM that Chancellor is tested with: 0.26 or 0.32")
    elif "plugin" in facts:
        yield ok("plugin", f"vLLM loads {PLUGIN}: TorchAO's weights run on vLLM's own kernels")
    else:
        yield ok("plugin", f"{PLUGIN} is registered for vLLM")
