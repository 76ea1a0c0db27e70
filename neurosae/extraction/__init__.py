"""From stimuli to responses: tokens, one hooked pass, alignment, storage."""
