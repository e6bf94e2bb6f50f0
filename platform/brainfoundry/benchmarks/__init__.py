"""Benchmarks: each `run(json_path)` measures one thing and returns a flat dictionary of named figures."""
