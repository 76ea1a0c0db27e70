"""Planted circuits, made once."""

from __future__ import annotations

import pytest

from tests.causal import circuits


@pytest.fixture(scope="session")
def and_circuit():
    """A neuron fires where A and B are both there."""
    return circuits.and_circuit()


@pytest.fixture(scope="session")
def linear_circuit():
    """A function from `layernorm` to the circuit that reads A and B linearly."""
    made = {}

    def make(layernorm: bool = True):
        if layernorm not in made:
            made[layernorm] = circuits.linear_circuit(layernorm)
        return made[layernorm]

    return make
