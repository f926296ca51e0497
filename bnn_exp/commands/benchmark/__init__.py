"""`task=benchmark benchmark=training`: speed and memory of training a configuration, beside what one would write in torch."""
