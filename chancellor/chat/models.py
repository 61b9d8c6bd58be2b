"""The chat models of a catalog."""

from collections.abc import Iterator, Mapping

from langchain_core.language_models import BaseChatModel

from chancellor.catalog import Catalog
from chancellor.chat.model import ChatVLLM
from chancellor.engines import EnginePool

__all__ = ["ChatModels"]


class ChatModels(Mapping[str, BaseChatModel]):
    """The chat model of each entry of a catalog, made when it is first asked for."""

    def __init__(self, catalog: Catalog, *, pool: EnginePool | None = None) -> None:
        self._catalog = catalog
        self._pool = pool
        self._models: dict[tuple[str, bool], BaseChatModel] = {}

    def __getitem__(self, name: str) -> BaseChatModel:
        return self._model(name, substitute=True)

    def named(self, name: str) -> BaseChatModel:
        """Return the model for a run that asks for it by name: no other one answers in its place."""
        return self._model(name, substitute=False)

    def _model(self, name: str, *, substitute: bool) -> BaseChatModel:
        if (known := self._models.get((name, substitute))) is not None:
            return known
        made = ChatVLLM(model=name, catalog=self._catalog, pool=self._pool, substitute=substitute)
        return self._models.setdefault((name, substitute), made)

    def __iter__(self) -> Iterator[str]:
        return (spec.name for spec in self._catalog.values() if self._catalog.rejection(spec) is None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
