"""The metrics of all processes under Ray Serve, as one text."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.exceptions import RayServeException

__all__ = ["gathered", "merged"]

logger = logging.getLogger(__name__)
_SCRAPE_S: Final = 5.0
"""How long a scrape waits for one process: Prometheus itself gives up after 10 s."""


async def gathered(handle: Any) -> dict[str, str]:
    """Return the metrics of a deployment's processes, by their names; those of one that hangs are left out.

    Args:
        handle: Ray's, of a deployment with a method `metrics`.
    """
    try:
        async with asyncio.timeout(_SCRAPE_S):
            # Not `results_async`: when one of them is late, it gives nothing of the others either.
            answers = await handle.broadcast("metrics")._fetch_replica_results_async()  # noqa: SLF001
    except (RayServeException, TimeoutError) as error:
        logger.warning("No process can be asked for its metrics: %s", type(error).__name__)
        return {}
    if not answers:
        return {}
    asked = {asyncio.ensure_future(answer.get_async()): answer for answer in answers}
    done, late = await asyncio.wait(asked, timeout=_SCRAPE_S)
    for task in late:
        task.cancel()
        asked[task].cancel()
    failed = [task for task in done if task.cancelled() or task.exception() is not None]
    if late or failed:
        logger.warning("Metrics of %d in %d processes are missing", len(late) + len(failed), len(asked))
    return dict(task.result() for task in done if task not in failed)


def merged(texts: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return the metrics of several processes as one text, in which each series says whose it is.

    Args:
        texts: by the label that has the process's name, and by that name.
    """

    class Collector:
        def collect(self) -> list[Metric]:
            families: dict[str, Metric] = {}
            for label, named in texts.items():
                for name, text in named.items():
                    for family in text_string_to_metric_families(text):
                        whole = families.setdefault(
                            family.name, Metric(family.name, family.documentation, family.type, family.unit)
                        )
                        for sample in family.samples:
                            whole.samples.append(sample._replace(labels={**sample.labels, label: name}))
            return list(families.values())

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry)
