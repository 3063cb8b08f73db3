"""Performance and detection benchmarks; each is a command, `python -m benchmarks.NAME`."""
