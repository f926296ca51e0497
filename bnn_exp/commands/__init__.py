"""The tasks of bnn-train, a file each, and the parts that they share. `cli` and Hydra call them."""
