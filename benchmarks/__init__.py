"""The numbers of docs/benchmarks.md, each measured beside its limit: `python -m benchmarks --help`."""
