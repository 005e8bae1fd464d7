"""Cells on disk: the format, reading it, and what makes it; a recipe's cells wherever they are."""
