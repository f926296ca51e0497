"""Datasets: finds the files of a dataset, decodes them to uint8 arrays, caches the arrays, and makes batches on the device.

Where to look: `sources` reads a dataset by name; `folder` finds the format of a folder, an archive or a file; `formats/` has
one reader per format; `decode` turns the rows of files into arrays; `cache` keeps the arrays; `dataset` holds the tensors of a
training; `augment` varies the train images.
"""
