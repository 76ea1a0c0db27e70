"""Interventions, attribution and the circuits behind an effect."""
