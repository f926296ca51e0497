"""`task=benchmark`: measures a trained network, a training, or the engines on this machine.

The setting `benchmark` is `inference`, `training` or `machine`.
"""
