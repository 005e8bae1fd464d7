"""Cells on disk, in the canonical order: written once from any number of files, read by stretches of positions."""
