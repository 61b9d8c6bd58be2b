"""Models on servers that speak OpenAI's protocol, by langchain-openai."""

import os

from langchain_core.language_models import BaseChatModel

from chancellor.catalog import ModelSpec
from chancellor.context import Context
from chancellor.errors import CatalogError, MissingDependencyError

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
    key = "none"
    if options.api_key_env is not None and not (key := os.environ.get(options.api_key_env, "")):
        raise CatalogError(
            f"{spec.name!r} needs the key in {options.api_key_env}, which is not set.",
            hint=f"Set it: export {options.api_key_env}=...",
        )
    return ChatOpenAI(
        model=spec.source,
        base_url=options.base_url,
        api_key=key,
        temperature=defaults.temperature,
        max_completion_tokens=defaults.max_tokens,
        stream_usage=True,
        use_responses_api=False,
        **options.vllm,
    )
