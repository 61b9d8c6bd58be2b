"""The graph: its builder, and the compiled one for LangGraph Studio (chancellor.graphs.chancellor)."""

from chancellor.graphs.builder import create_chancellor

__all__ = ["create_chancellor"]
