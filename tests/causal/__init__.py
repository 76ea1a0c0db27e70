"""Tests of interventions and attribution."""
