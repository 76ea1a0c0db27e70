"""Cognitive-neuroscience statistics for the features inside language models."""
