"""Sweeps and other groups of runs: which settings vary, the table of means, its files and its plot."""
