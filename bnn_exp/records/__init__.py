"""The run directory: the files that a run writes, their readers, and the output of a run on the console.

Where to look: `files` writes atomically; `checkpoint`, `metrics`, `summary` and `model` hold one file format each; `runs`
reads run directories; `sweeps/` compares many runs; `html/` makes the pages `report.html`.
"""
