"""`task=benchmark`: speed and memory of a trained network (`benchmark=inference`), or of a training (`benchmark=training`)."""
