"""Tiny checkpoints without chance, and what they make of a few prompts, to the last number."""
