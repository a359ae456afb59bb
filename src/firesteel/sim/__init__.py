"""Imagined clusters: the same strategies in virtual time."""
