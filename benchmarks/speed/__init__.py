"""The speed benchmark: ``python benchmarks/speed``."""
