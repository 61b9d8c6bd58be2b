"""Whether another engine fits beside those that run."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from chancellor.catalog import ModelSpec
from chancellor.checkpoints import fetch
from chancellor.engines.neighbours import PROCESS, Neighbours
from chancellor.engines.resident import SmallerCache
from chancellor.errors import CheckpointError, MissingDependencyError, OutOfMemoryError
from chancellor.memory import Device, Estimate, Ledger, devices, measure

__all__ = ["Fit", "Room", "fitted", "smaller_cache", "too_little"]

_GIB: Final = 2**30
_SPARE: Final = _GIB // 2
"""What is left of a GPU's memory where others have the rest: an estimate may be a little low, and nothing gives way."""
_CONTEXT: Final = _GIB
"""What vLLM's process may have taken of a GPU before it looks at what is free, such as for CUDA's context."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How an engine fits."""

    kv_cache: int | None
    """Bytes for the KV cache on each device; None where not even the least of it fits."""
    comfortable: bool
    """Whether at least half of the KV cache that it wants is there."""
    possible: bool
    """Whether it would fit if no other engine of ours ran."""
    available: int
    """Bytes for the whole engine, on the fullest of its devices."""
    occupied: bool = False
    """Whether the budget would do, and what is missing is in use by others, or has not been given back yet."""
    never: bool = False
    """Whether it would not even fit on devices that are empty."""
    share: float | None = None
    """What it then takes of its smallest GPU; None on a CPU."""


class Room:
    """Memory of the devices, and what engines need of it. The methods read files and ask drivers: not for a loop."""

    neighbours: Neighbours | None = None
    """Those who share the budget; None where it is the pool's own, as on devices that are not real."""

    def __init__(self, ledger: Ledger | None = None, read: Callable[[], list[Device]] = devices) -> None:
        self._ledger = ledger or Ledger()
        self._read = read
        if read is devices:
            self.neighbours = PROCESS

    def expected(self, spec: ModelSpec) -> Estimate | None:
        """Return what the engine will need; None where that cannot be known, which its start will explain.

        What is not on this machine yet is downloaded first, for nobody knows what it needs before.

        Raises:
            CheckpointError: it cannot be had.
        """
        try:
            need = self._ledger.expected(spec)
        except MissingDependencyError:
            return None
        except CheckpointError:
            fetch(spec.source, spec.revision, allow_pickle=spec.allow_pickle)
            try:
                need = self._ledger.expected(spec)
            except (CheckpointError, MissingDependencyError):
                return None
        return self._shared(spec, need)

    def _shared(self, spec: ModelSpec, need: Estimate) -> Estimate:
        """Return the need of an entry that names a share of the GPU, which wants all that the model leaves of it."""
        options = spec.engine
        more = options.vllm if options.kind == "vllm" else {}
        fixed = more.get("gpu_memory_utilization")  # this wins over what it is granted
        share = fixed or options.gpu_memory_utilization
        named = fixed or "gpu_memory_utilization" in options.model_fields_set
        totals = [device.total for device in self._read() if device.name in need.devices and device.name != "cpu"]
        if not named or not totals or options.kv_cache_gib is not None or "kv_cache_memory_bytes" in more:
            return need
        rest = max(int(share * min(totals)) - need.fixed, need.kv_cache_least)
        return replace(need, kv_cache=rest, kv_cache_least=rest if fixed else need.kv_cache_least)

    def fit(
        self,
        need: Estimate,
        taken: Mapping[str, int],
        freed: Mapping[str, int] | None = None,
        elsewhere: Mapping[str, int] | None = None,
    ) -> Fit:
        """Return how the engine fits beside engines of ours.

        Args:
            need: what it needs.
            taken: bytes on each device that those take.
            freed: bytes on each device that are in use now, and will be free.
            elsewhere: bytes on each device that engines of other pools take, which make no room.
        """
        more = freed or {}
        present = {device.name: replace(device, free=device.free + more.get(device.name, 0)) for device in self._read()}
        own = [present[name] for name in need.devices if name in present]
        if not own:
            return Fit(need.kv_cache, comfortable=True, possible=True, available=need.total)
        ours = {device.name: taken.get(device.name, 0) for device in own}
        budget = {device.name: device.budget - (elsewhere or {}).get(device.name, 0) for device in own}
        left = {name: budget[name] - ours[name] for name in budget}
        available = min(min(left[device.name], device.free) for device in own)
        alone = min(min(budget[device.name], device.free + ours[device.name]) for device in own)
        fixed = need.least - need.kv_cache_least
        granted = min(need.kv_cache, available - fixed)
        if any(device.name != "cpu" and device.free < left[device.name] for device in own):
            granted = max(min(granted, need.kv_cache_least), min(need.kv_cache, available - fixed - _SPARE))
        enough = need.enough
        return Fit(
            kv_cache=granted if granted >= need.kv_cache_least else None,
            comfortable=available >= enough,
            occupied=available < enough <= min(left.values()),
            possible=alone >= need.least,
            available=max(0, available),
            never=min(device.budget for device in own) < need.least,
            share=_share(own, fixed + max(granted, need.kv_cache_least)),
        )

    def took(self, spec: ModelSpec, process_ids: Iterable[int], need: Estimate) -> int | None:
        """Note what the engine really takes on its first device; return it, in bytes."""
        held = measure(process_ids, need.devices[0]) if need.devices else None
        if held:
            self._ledger.record(spec, held)
        return held

    def held(self, process_ids: Iterable[int]) -> dict[str, int]:
        """Return what processes of which nobody knew the need hold, in bytes by device."""
        ids = list(process_ids)
        found = {device.name: measure(ids, device.name) for device in self._read()}
        return {name: held for name, held in found.items() if held}

    def free(self) -> dict[str, int]:
        """Return what each device has free, in bytes."""
        return {device.name: device.free for device in self._read()}

    def free_mib(self) -> float | None:
        """Return what the fullest of the devices has free, in MiB."""
        free = [device.free for device in self._read()]
        return round(min(free) / 2**20, 1) if free else None


def fitted(spec: ModelSpec, fit: Fit) -> ModelSpec:
    """Return the entry with the KV cache that it gets, and the share of a GPU that vLLM checks at its start."""
    changed: dict[str, float] = {}
    if fit.kv_cache is not None:
        changed["kv_cache_gib"] = fit.kv_cache / _GIB
    if fit.share is not None:
        changed["gpu_memory_utilization"] = fit.share
    return spec.model_copy(update={"engine": spec.engine.model_copy(update=changed)}) if changed else spec


def smaller_cache(spec: ModelSpec, need: Estimate, fit: Fit) -> SmallerCache | None:
    """Return what the engine gets for its KV cache if it is much less than it should be: than it wants, or is given."""
    if fit.kv_cache is None or spec.engine.kind != "vllm":
        return None
    least = need.kv_cache if spec.engine.kv_cache_gib is not None else need.kv_cache // 2
    return SmallerCache(need.kv_cache, fit.kv_cache) if fit.kv_cache < least else None


def too_little(spec: ModelSpec, need: Estimate, fit: Fit) -> OutOfMemoryError:
    """Return the error for an engine that does not fit."""
    where = ", ".join(need.devices)
    own = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & set(spec.engine.vllm)
    least = "as its entry sets its size" if own else f"for one context of {spec.context_window or 0:,} tokens"
    return OutOfMemoryError(
        f"{spec.name!r} needs {need.least / _GIB:.1f} GiB on {where} {least}, and {fit.available / _GIB:.1f} GiB of "
        "the budget are left."
    )


def _share(own: list[Device], bytes_: int) -> float | None:
    """Return the share, and a little more, but never so much that vLLM finds too little free, and does not start."""
    if not own or own[0].name == "cpu":
        return None
    share = min(1.0, round(bytes_ / min(device.total for device in own) + 0.005, 3))
    free = min((device.free - _CONTEXT) / device.total for device in own)
    return max(0.01, min(share, math.floor(free * 1000) / 1000))
