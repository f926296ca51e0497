"""`task=benchmark`: measures a trained network (`benchmark=inference`) or a training (`benchmark=training`)."""
