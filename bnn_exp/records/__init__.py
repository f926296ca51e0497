"""The run directory: what a run leaves behind, and what it says while it runs."""
