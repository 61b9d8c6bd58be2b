"""An engine of this process as a target: through the graph, the chat model, the pool, or AsyncLLM itself."""

import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from chancellor.bench.targets.base import Ask, Reply, Stopwatch, Target
from chancellor.bench.targets.langchain import ask_chat_model, ask_graph
from chancellor.catalog import Catalog, ModelSpec
from chancellor.chat import ChatVLLM
from chancellor.context import Context
from chancellor.engines import EnginePool, EngineStats, GenerationRequest
from chancellor.engines.base import Engine
from chancellor.engines.hardware import default_frontend
from chancellor.errors import BenchmarkError
from chancellor.graphs.builder import create_chancellor
from chancellor.nodes import generation_node

__all__ = ["LAYERS", "ChatTarget", "EngineTarget", "GraphTarget", "Layer", "LocalTarget", "RawTarget", "local_target"]

Layer = Literal["graph", "chat", "engine", "raw"]
T = TypeVar("T")


class LocalTarget(Target):
    """A model of the catalog in an engine of this process's pool."""

    layer: Layer

    def __init__(self, name: str, spec: ModelSpec, pool: EnginePool) -> None:
        self.name = name
        self.pool = pool
        self._engine: Engine | None = None
        self._use(spec)

    @property
    def detail(self) -> str:
        kind = self._engine.kind if self._engine else "engine"
        scheme = (self._engine.quantization if self._engine else self.spec.scheme) or "unquantised"
        return f"{self.layer} over {kind}: {self.spec.name}, {scheme}"

    @property
    def engine(self) -> Engine:
        """The running engine.

        Raises:
            BenchmarkError: it has not been started.
        """
        if self._engine is None:
            raise BenchmarkError(f"The target {self.name!r} is not running.", hint="Start it first.")
        return self._engine

    @property
    def max_model_len(self) -> int | None:
        options = self.spec.engine
        own = options.vllm.get("max_model_len", options.max_model_len) if options.kind == "vllm" else None
        # vLLM takes "auto" and the like as well.
        limit = options.max_model_len if own is None else own
        return limit if isinstance(limit, int) and limit > 0 else None

    def limit_memory(self, share: float) -> None:
        """Let the engine take this share of the GPU's memory; before the start only."""
        options = self.spec.engine.model_copy(update={"gpu_memory_utilization": share})
        self._use(self.spec.model_copy(update={"engine": options}))

    def _use(self, spec: ModelSpec) -> None:
        self.spec = spec

    async def start(self) -> None:
        self.started_here = not await self.pool.aruns(self.spec)
        self._engine = await self.pool.aengine(self.spec)

    async def tokenizer(self) -> Any | None:
        return self.engine.tokenizer()

    async def begin(self) -> bool:
        # Asked for anew: one that died in the last segment is started here, and not in a request that is timed.
        self._engine = await self.pool.aengine(self.spec)
        await self.pool.arun(self._engine.forget())
        return True

    def peaks(self) -> tuple[int, float | None] | None:
        return self._engine.peaks() if self._engine else None

    def stats(self) -> EngineStats | None:
        return self._engine.stats() if self._engine else None

    def processes(self) -> list[int] | None:
        return self._engine.process_ids() if self._engine else []

    @property
    def facts(self) -> dict[str, float]:
        return self._engine.facts() if self._engine else {}

    async def close(self) -> None:
        self._engine = None
        if self.started_here:  # else it was there before, for somebody else
            await self.pool.astop(self.spec)


class EngineTarget(LocalTarget):
    """Our engine by its pool: what the chat model and the graph stand on."""

    layer = "engine"

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        request = GenerationRequest(
            messages=ask.messages,
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            seed=ask.seed,
            stream=ask.stream,
            ignore_eos=ask.ignore_eos,
        )
        text: list[str] = []
        async with aclosing(self.pool.agenerate(self.spec, request)) as deltas:
            async for delta in deltas:
                if ask.stream:
                    stopwatch.piece()
                text.append(delta.text)
        return Reply(
            "".join(text),
            delta.input_tokens,
            delta.output_tokens,
            delta.cached_tokens,
            delta.time_to_first_token_s,
            delta.queue_time_s,
        )


class ChatTarget(LocalTarget):
    """ChatVLLM, as any LangChain program would call it."""

    layer = "chat"

    def _use(self, spec: ModelSpec) -> None:
        super()._use(spec)
        self._model = ChatVLLM(model=spec.name, catalog=_alone(spec), pool=self.pool)

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        parameters: dict[str, Any] = {
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "ignore_eos": ask.ignore_eos,
        }
        return await ask_chat_model(self._model, ask, stopwatch, parameters, every_chunk=True)


class GraphTarget(LocalTarget):
    """The compiled graph, with its four nodes."""

    layer = "graph"

    def _use(self, spec: ModelSpec) -> None:
        super()._use(spec)
        catalog = _alone(spec)
        self._graphs = {
            ignore_eos: create_chancellor(
                catalog,
                generate=generation_node(
                    {spec.name: ChatVLLM(model=spec.name, catalog=catalog, pool=self.pool, ignore_eos=ignore_eos)}
                ),
            ).compile()
            for ignore_eos in (False, True)
        }

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        graph = self._graphs[ask.ignore_eos]
        context = Context(model=self.spec.name, max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed)
        return await ask_graph(graph, ask, stopwatch, context, every_chunk=True)


class RawTarget(LocalTarget):
    """AsyncLLM driven directly on its own event loop: prompts are rendered, and no other layer of ours takes part.

    It is the same running engine as that of the other layers over this model, so that only the layers differ.
    """

    layer = "raw"

    def _use(self, spec: ModelSpec) -> None:
        if spec.engine.kind != "vllm":
            raise BenchmarkError(
                f"{spec.name!r} does not run in vLLM, which `raw` drives.", hint="Name `engine` instead of `raw`."
            )
        if (spec.engine.frontend or default_frontend()) == "process":  # AsyncLLM has to be here to be driven
            options = spec.engine.model_copy(update={"frontend": "thread"})
            spec = spec.model_copy(update={"engine": options})
        super()._use(spec)

    async def begin(self) -> bool:
        emptied = await super().begin()
        llm: Any = self.engine.inner()  # vLLM 0.26 has for all requests alike what our engine sets as it needs it
        llm.output_processor.stream_interval = llm.vllm_config.scheduler_config.stream_interval
        return emptied

    async def drive(self, work: Callable[[], Awaitable[T]]) -> T:
        async def here() -> T:
            return await work()

        return await self.pool.arun(here())

    async def send(self, ask: Ask, stopwatch: Stopwatch) -> Reply:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from chancellor.engines.prompt import render

        llm: Any = self.engine.inner()
        token_ids = render(llm.get_tokenizer(), ask.messages).token_ids
        sampling = SamplingParams(
            max_tokens=ask.max_tokens,
            temperature=ask.temperature,
            seed=ask.seed,
            ignore_eos=ask.ignore_eos,
            output_kind=RequestOutputKind.DELTA if ask.stream else RequestOutputKind.FINAL_ONLY,
        )
        tokens, text = 0, []
        async for output in llm.generate(tokens_input(token_ids), sampling, f"raw-{uuid.uuid4().hex}"):
            if ask.stream:
                stopwatch.piece()
            tokens += len(output.outputs[0].token_ids)
            text.append(output.outputs[0].text)
        metrics = output.metrics
        first = metrics.first_token_latency if metrics is not None and metrics.first_token_latency > 0 else None
        queued = metrics.scheduled_ts - metrics.queued_ts if metrics is not None and metrics.scheduled_ts else None
        return Reply("".join(text), len(token_ids), tokens, output.num_cached_tokens, first, queued)


LAYERS: Mapping[str, type[LocalTarget]] = {
    "graph": GraphTarget,
    "chat": ChatTarget,
    "engine": EngineTarget,
    "raw": RawTarget,
}


def local_target(layer: Layer, name: str, spec: ModelSpec, pool: EnginePool) -> LocalTarget:
    """Return the target of this layer."""
    return LAYERS[layer](name, spec, pool)


def _alone(spec: ModelSpec) -> Catalog:
    """A catalog of one: what is measured is named, so its score does not matter."""
    return Catalog([spec], minimum_trinity_score=0.0)
