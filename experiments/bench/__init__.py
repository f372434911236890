"""Benchmarks of the simulator: ``make bench``. Ratios of cases that take turns in one run, in CPU seconds."""
