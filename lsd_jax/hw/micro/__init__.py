"""Microbenchmarks of a chip: cases, a clock, a log that is continued, and fits to what it holds.

Read in this order: `case`, `suites`, `clock` (measures), `log`, `harness` (runs cases), `fit`.
"""
