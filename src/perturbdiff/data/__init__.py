"""Files to batches of populations: recipes, cells, genes, splits, populations and a simulator."""
