"""Latencies foretold from tables."""
