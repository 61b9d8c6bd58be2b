"""LangChain chat models over engines: one class, and the models of a catalog by name."""

from chancellor.chat.model import ChatVLLM
from chancellor.chat.models import ChatModels

__all__ = ["ChatModels", "ChatVLLM"]
