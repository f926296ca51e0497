"""Trained networks that compute on bits, and their ways out."""

from bnn_exp.deploy.load import load_packed, pack_network

__all__ = ["load_packed", "pack_network"]
