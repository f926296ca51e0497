"""Readers of datasets, one module per file format. `bnn_exp.data.folder` decides which reader applies.

A reader has a function `find(root, files, label, where)`. The function looks at names and first bytes, and returns a `Found`
(see `bnn_exp.data.undecoded`), or None if the files have another format. Some modules are no readers: `archive` and `hub`
return a `Source`; `class_folders` and `image_table` read folders of images for `bnn_exp.data.folder`; `parquet` and `hub` use
`arrow_table`.
"""
