"""Exports of packed networks: the writer of each format, and what all formats carry."""
