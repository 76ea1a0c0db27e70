"""Tests of hypotheses about responses."""
