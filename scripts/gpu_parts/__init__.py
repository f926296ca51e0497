"""The parts of `scripts/gpu.py`: each is a function that measures and yields rows of its table, column → value.

`scripts/gpu.py` starts `python -m gpu_parts PART --device cuda --out FOLDER` once for each part.
"""
