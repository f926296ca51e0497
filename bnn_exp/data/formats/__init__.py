"""Readers of datasets, one module per file format. `bnn_exp.data.folder` decides which one applies."""
