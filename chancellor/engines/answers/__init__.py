"""Between a request and what a model reads and writes: tools, guided answers, reasoning."""

from chancellor.engines.answers.plan import Plan, plan_of

__all__ = ["Plan", "plan_of"]
