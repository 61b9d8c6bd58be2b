"""The OpenAI-compatible endpoint beside the graph, for LangGraph's server: see langgraph.json."""

from chancellor.server.mounted import app

__all__ = ["app"]
