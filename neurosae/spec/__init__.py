"""Strict YAML, files on disk and the results schema."""
