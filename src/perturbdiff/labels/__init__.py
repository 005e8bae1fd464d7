"""What labels mean: their text, members and doses, vocabularies, and what a model can be asked."""
