"""The settings of a chat model over a catalog, and what follows from its entry: profile, cache key, tokens."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Self

from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.messages import BaseMessage
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from chancellor.catalog import Catalog
from chancellor.chat.options import tools_of
from chancellor.chat.tokens import count_messages, count_text, token_ids
from chancellor.engines import EnginePool
from chancellor.errors import CatalogError

__all__ = ["PARAMETERS", "ChatSettings"]

PARAMETERS = (
    *("temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
)
"""Fields that are options of a call as well, and go to the engine."""
_IDENTIFYING = (*PARAMETERS, "stop", "logprobs", "top_logprobs", "substitute", "streaming", "output_version")
"""Fields that change an answer, or what is known of it."""
_PROFILED = {"model", "catalog"}
"""Fields that the model's profile comes from."""


class ChatSettings(BaseChatModel):
    """A chat model whose engine is an entry of a catalog; see `ChatVLLM`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str
    """Name in the catalog."""
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    max_tokens: int = Field(default=512, ge=1)
    """Most new tokens of one answer."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=-1, le=2**31 - 1)
    """How many of the likeliest tokens to choose from; 0 or -1 for all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Least probability of a token to be chosen, as a share of the likeliest one's."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken once off the logit of each token that the answer has already."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken off the logit of a token for each time that the answer has it."""
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=1000.0)
    """Divides the logit of each token that prompt or answer have, if it is positive; else it multiplies it."""
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    """Token ids with what is added to their logits."""
    seed: int | None = None
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Texts that end the answer; those of a call replace them."""
    logprobs: bool = False
    """Whether to report each token's log probability, in `response_metadata["logprobs"]`."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many of the likeliest tokens to report at each place."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds that an answer may take, the start of its engine included; None for as long as it takes."""
    max_retries: int = Field(default=1, ge=0)
    """How many deaths of its engine a request outlives: a new engine goes on with its answer."""
    substitute: bool = False
    """Whether another model of the catalog may answer when this one cannot be served at all."""
    streaming: bool = False
    """Stream also when invoked, for callbacks that want each token."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever the model says: for benchmarks."""
    catalog: Catalog | None = Field(default=None, exclude=True, repr=False)
    """None loads the catalog as the command line does."""
    pool: EnginePool | None = Field(default=None, exclude=True, repr=False)
    """None uses the process's own."""

    _loaded: Catalog | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _find(self) -> Self:
        self._models.usable(self.model)
        return self

    @property
    def _models(self) -> Catalog:
        if self.catalog is not None:
            return self.catalog
        if self._loaded is None:
            self._loaded = Catalog.load()
        return self._loaded

    def __setattr__(self, name: str, value: Any) -> None:
        derived = name in _PROFILED and self._has_own_profile()
        super().__setattr__(name, value)
        if derived:
            self._renew_profile()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copy = super().model_copy(update=update, deep=deep)
        if update and update.keys() & _PROFILED and "profile" not in update and self._has_own_profile():
            copy._renew_profile()  # noqa: SLF001 - of its own kind
        return copy

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Engines are shared, not copied."""
        memo = {} if memo is None else memo
        memo[id(self.pool)] = self.pool
        return super().__deepcopy__(memo)

    def _has_own_profile(self) -> bool:
        """Return whether the profile is the one of the model, and not the user's."""
        with suppress(CatalogError):
            return self.profile == self._resolve_model_profile()
        return False

    def _renew_profile(self) -> None:
        with suppress(CatalogError):  # which the next call raises
            self.profile = self._resolve_model_profile()

    def _resolve_model_profile(self) -> ModelProfile | None:
        limit = self._models.usable(self.model).context_window
        profile = ModelProfile(text_inputs=True, text_outputs=True, tool_calling=True, structured_output=True)
        if limit is not None:
            profile["max_input_tokens"] = limit
        return profile

    @property
    def _identifying_params(self) -> dict[str, Any]:
        spec = self._models.usable(self.model).model_dump(mode="json", exclude={"trinity", "tier"})
        own = {name: getattr(self, name) for name in _IDENTIFYING}
        return {**spec, **own, "default_stop": self.stop}  # LangChain puts the stop texts of the call over "stop"

    def get_token_ids(self, text: str) -> list[int]:
        """Return the ids of a text's tokens, by the model's own tokenizer; nothing is downloaded.

        Raises:
            CheckpointError: the model's files are not on this machine, or have no tokenizer.
            InvalidInputError: the model is on a server.
            MissingDependencyError: transformers is not installed.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return token_ids(self._models.usable(self.model), text)

    def get_num_tokens(self, text: str) -> int:
        """Return how many tokens a text has: a quarter of its characters, about, for a model on a server."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return count_text(self._models.usable(self.model), text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return how many tokens the model reads for a conversation, with what its chat template adds.

        For a model on a server it is LangChain's approximation.

        Raises:
            CheckpointError: the model's files are not on this machine, or have no tokenizer.
            InvalidInputError: a message holds something other than text.
            MissingDependencyError: transformers is not installed.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        return count_messages(self._models.usable(self.model), messages, tools_of(tools or ()))
