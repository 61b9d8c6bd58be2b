"""Benchmarks: the same work on several targets, measured request by request, and what comes of it."""

from chancellor.bench.events import Event
from chancellor.bench.load import Load
from chancellor.bench.monitor import PerformanceMonitor
from chancellor.bench.objectives import Objectives
from chancellor.bench.report import Report
from chancellor.bench.targets.base import Target
from chancellor.bench.workload import AgentTurns, Questions, Synthetic, Workload

__all__ = [
    "AgentTurns",
    "Event",
    "Load",
    "Objectives",
    "PerformanceMonitor",
    "Questions",
    "Report",
    "Synthetic",
    "Target",
    "Workload",
]
