"""Compares many runs of a sweep or of any folders: finds the varied settings, and makes the table of means and its plot."""
