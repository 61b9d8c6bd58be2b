"""The four nodes of the graph, each made by a factory. Any callable `(state) -> partial state` can take their place."""

from chancellor.nodes.complexity import complexity_node
from chancellor.nodes.generation import generation_node
from chancellor.nodes.metrics import metrics_node
from chancellor.nodes.node import Node
from chancellor.nodes.selection import selection_node

__all__ = ["Node", "complexity_node", "generation_node", "metrics_node", "selection_node"]
