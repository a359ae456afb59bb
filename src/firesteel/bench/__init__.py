"""The bench: which method, on which cluster, for which network."""
