"""The tasks of bnn-train, each in its own file, and the parts that the tasks share. `cli` and Hydra call the tasks."""
