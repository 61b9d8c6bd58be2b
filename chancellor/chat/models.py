"""The chat models of a catalog."""

from collections.abc import Iterator, Mapping

from langchain_core.language_models import BaseChatModel

from chancellor.catalog import Catalog
from chancellor.chat.model import ChatVLLM
from chancellor.chat.remote import remote_model
from chancellor.engines import EnginePool

__all__ = ["ChatModels"]


class ChatModels(Mapping[str, BaseChatModel]):
    """The chat model of each entry of a catalog, made when it is first asked for."""

    def __init__(self, catalog: Catalog, *, pool: EnginePool | None = None) -> None:
        self._catalog = catalog
        self._pool = pool
        self._models: dict[str, BaseChatModel] = {}

    def __getitem__(self, name: str) -> BaseChatModel:
        if name not in self._models:
            spec = self._catalog.usable(name)
            if spec.engine.kind == "openai":
                self._models[name] = remote_model(spec)
            else:
                self._models[name] = ChatVLLM(model=name, catalog=self._catalog, pool=self._pool)
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._catalog.values() if self._catalog.rejection(spec) is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
