"""Benchmark formats and metrics."""
