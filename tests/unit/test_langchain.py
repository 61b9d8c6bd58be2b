"""LangChain's own tests for chat models that need no engine."""

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from chancellor import Catalog, ChatVLLM, EngineOptions
from tests.fakes import catalog


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatVLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "light", "catalog": catalog()}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        params = super().standard_chat_model_params
        params.pop("api_key")  # a model in this process has none
        return params

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "strong"


class TestTransformers(TestUnit):
    """The same where the models are served by transformers."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        models = [spec.model_copy(update={"engine": EngineOptions(kind="transformers")}) for spec in catalog().values()]
        return {"model": "light", "catalog": Catalog(models)}
