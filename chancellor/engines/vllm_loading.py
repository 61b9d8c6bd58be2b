"""From a catalog entry to vLLM's AsyncLLM with its processes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from chancellor import progress
from chancellor.catalog import ModelSpec
from chancellor.engines.base import EngineStats
from chancellor.engines.hardware import default_dtype
from chancellor.engines.logs import in_file, log_file, refusal_in, shortage_in
from chancellor.engines.phases import following
from chancellor.engines.postmortem import PostMortem
from chancellor.engines.spawn import engine_spawning, environment, starting
from chancellor.engines.vllm_args import engine_args, process_environment
from chancellor.engines.vllm_parts import (
    TALKATIVE,
    forget_environment,
    import_async_llm,
    keep_imports,
    remember_environment,
    stat_logger,
)
from chancellor.engines.vllm_processes import Processes
from chancellor.errors import ChancellorError, EngineStartError, OutOfMemoryError
from chancellor.quantization.prepare import Prepared, prepare

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["Loaded", "load"]


class Loaded(NamedTuple):
    """What a start has made."""

    llm: "AsyncLLM"
    prepared: Prepared
    facts: dict[str, float]
    """What its log says, such as the memory that the weights take."""
    postmortem: PostMortem


def load(
    spec: ModelSpec, processes: Processes, record: Callable[[EngineStats], None], interrupted: Callable[[], bool]
) -> Loaded:
    """Load the model. Blocks for half a minute and more.

    Args:
        spec: the entry.
        processes: takes those that are started.
        record: takes what the engine does, after each of its steps.
        interrupted: whether nobody wants it any more.

    Raises:
        ChancellorError: it cannot be loaded.
    """
    try:
        with starting, progress.endable(interrupted):
            try:
                return _load(spec, processes, record, interrupted)
            finally:
                remember_environment()
    except ChancellorError:
        raise
    except Exception as error:
        raise EngineStartError(
            f"The engine of {spec.name!r} did not start: {error}", hint=f"Its log may say more: {log_file()}"
        ) from error


def _load(
    spec: ModelSpec, processes: Processes, record: Callable[[EngineStats], None], interrupted: Callable[[], bool]
) -> Loaded:
    progress.report("start", spec.name, "importing vLLM")
    with environment(process_environment()):
        async_llm = import_async_llm()
    forget_environment()
    keep_imports()
    dtype = spec.engine.dtype or default_dtype()
    prepared = prepare(spec, dtype)
    if spec.engine.dtype is None and prepared.dtype is not None:
        dtype = prepared.dtype
    progress.report("start", spec.name, "vLLM: starting its processes")
    logged, postmortem = log_file().stat().st_size, PostMortem()
    if interrupted():
        raise _interruption(spec)
    try:
        with (
            processes.starting(),
            environment(process_environment()),
            engine_spawning(),
            following(log_file(), spec.name) as facts,
            in_file(*TALKATIVE),
        ):
            arguments = engine_args(spec, prepared, dtype)
            llm: AsyncLLM = async_llm.from_engine_args(arguments, stat_loggers=[stat_logger(record)])
            if interrupted():  # nobody may be there any more to close it
                raise _interruption(spec)
    except ChancellorError:
        raise
    except Exception as error:
        if (shortage := shortage_in(log_file(), logged, error)) is not None and not interrupted():
            raise OutOfMemoryError(f"There was not enough memory to start {spec.name!r}: {shortage}") from error
        reason = refusal_in(log_file(), logged) or error
        raise EngineStartError(
            f"vLLM did not start {spec.name!r}: {reason}", hint=f"The cause is in its log: {log_file()}"
        ) from error
    return Loaded(llm, prepared, facts, postmortem)


def _interruption(spec: ModelSpec) -> EngineStartError:
    return EngineStartError(f"The start of {spec.name!r} was interrupted.")
