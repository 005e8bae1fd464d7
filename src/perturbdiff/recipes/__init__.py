"""What the user says: data sets as recipes, strict tables, which files they mean; the recipes of the paper."""
