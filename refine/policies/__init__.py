"""Policies as arrays: the portable network, its files, and the ways from and to other formats."""
