"""Measurements of speed and memory, with their peers (docs/benchmarks.md)."""
