"""Benchmarks: the same work on several targets, measured request by request, and what comes of it."""
