"""Judges files of predicted cells against files of observed cells. No torch, nothing of the model."""
