"""Compares many runs, of a sweep or of any folders: which settings vary, the table of means, its files and its plot."""
