"""The training loop: a thin module around the objective, the optimiser and the callbacks."""
