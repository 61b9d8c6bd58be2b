import subprocess
import sys

import chancellor
from chancellor import errors

PUBLIC = {
    "Answer",
    "Catalog",
    "ChatModels",
    "ChatVLLM",
    "Context",
    "EngineOptions",
    "FallbackOptions",
    "ModelSpec",
    "PerformanceMonitor",
    "Pillars",
    "State",
    "TrinityMiddleware",
    "ask",
    "create_chancellor",
    "quantize",
}
ERRORS = {
    "BenchmarkError",
    "BrokenCheckpointError",
    "CatalogError",
    "CatalogFileError",
    "ChancellorError",
    "CheckpointError",
    "DownloadError",
    "EmptyQuestionError",
    "EngineBusyError",
    "EngineDiedError",
    "EngineError",
    "EngineStartError",
    "GenerationError",
    "GenerationTimeoutError",
    "InvalidContextError",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelRejectedError",
    "NoEligibleModelError",
    "OutOfMemoryError",
    "PromptTooLongError",
    "QuantizationError",
    "ReportError",
    "SourceNotFoundError",
    "UnknownChoiceError",
    "UnknownModelError",
    "UnsafeCheckpointError",
    "UpstreamError",
    "WorkloadError",
}


def test_all_is_pinned() -> None:
    assert set(chancellor.__all__) == PUBLIC | ERRORS
    assert len(chancellor.__all__) == len(set(chancellor.__all__))
    assert set(errors.__all__) == ERRORS


def test_every_public_name_can_be_imported() -> None:
    for name in chancellor.__all__:
        assert getattr(chancellor, name) is not None
    assert callable(chancellor.ask)


def test_ask_stays_a_function_whatever_is_imported_first() -> None:
    code = "import chancellor.answer, chancellor.cli.ask, chancellor; assert callable(chancellor.ask), chancellor.ask"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_light() -> None:
    heavy = ("torch", "vllm", "transformers", "torchao", "fastapi", "huggingface_hub", "gguf", "numpy")
    code = f"""
import sys
import chancellor
light = [name for name in {heavy!r} + ("langgraph", "langchain_core", "pydantic") if name in sys.modules]
assert not light, f"import chancellor loads {{light}}"
from chancellor import Catalog, ChatVLLM, Context, State, ask, create_chancellor
create_chancellor().compile()
loaded = [name for name in {heavy[:5]!r} if name in sys.modules]
assert not loaded, f"building the graph loads {{loaded}}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for name in ERRORS:
        assert issubclass(getattr(errors, name), errors.ChancellorError)
        assert name in (errors.__doc__ or "")
