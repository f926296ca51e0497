"""Readers of datasets, one module per file format. `bnn_exp.data.folder` decides which reader applies.

A reader has a function `find(root, files, label, where)`. The function looks at names and first bytes, and returns a `Found`
(see `bnn_exp.data.undecoded`), or None if the files have another format. The content of files does not choose `archive`
and `hub`: these readers return a `Source`.
"""
