"""From files to cells: AnnData read and checked, several files joined, the canonical order, sums over cells."""
