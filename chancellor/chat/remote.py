"""Models on servers that speak OpenAI's protocol, by langchain-openai."""

from langchain_core.language_models import BaseChatModel

from chancellor.catalog import ModelSpec
from chancellor.context import Context
from chancellor.engines.remote_server import api_key
from chancellor.errors import MissingDependencyError

__all__ = ["remote_model"]


def remote_model(spec: ModelSpec) -> BaseChatModel:
    """Return the chat model of an entry whose engine is of kind "openai", with the defaults of a run.

    Raises:
        MissingDependencyError: langchain-openai is not installed.
        CatalogError: the environment variable with the key is not set.
    """
    try:
        from langchain_openai import ChatOpenAI
    except ImportError:
        raise MissingDependencyError.of("langchain-openai", "remote") from None
    options, defaults = spec.engine, Context()
    return ChatOpenAI(
        model=spec.source,
        base_url=options.base_url,
        api_key=api_key(spec),
        temperature=defaults.temperature,
        max_completion_tokens=defaults.max_tokens,
        stream_usage=True,
        use_responses_api=False,
        **options.vllm,
    )
