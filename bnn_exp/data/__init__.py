"""Datasets: from a name or a folder to uint8 tensors on the device."""
