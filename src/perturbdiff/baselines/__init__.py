"""Simple predictors that write the same files as the model and stand beside it in every table; see `catalogue`."""
