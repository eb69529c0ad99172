"""The benchmarks of docs/benchmarks.md, each beside its limit: `python -m benchmarks --help`."""
