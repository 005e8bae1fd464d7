"""Vectors that stand for labels: tables, their files, fingerprints of molecules, embeddings of texts."""
