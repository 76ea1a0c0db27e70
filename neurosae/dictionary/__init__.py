"""Sparse dictionaries: train, evaluate, load."""
