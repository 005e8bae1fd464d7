"""Numbers that say how good a prediction is, from arrays and tables: no torch, and nothing of files."""
