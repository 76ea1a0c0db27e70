"""From a design file to stimuli, weights and admissible relabellings."""
