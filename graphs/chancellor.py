"""The graph that LangGraph Studio opens (see langgraph.json), over the catalog that the settings name."""

from chancellor.graphs.builder import create_chancellor

__all__ = ["graph"]

graph = create_chancellor().compile(name="chancellor")
