"""Deterministic tiny checkpoints of every family, and their golden vectors for a few prompts."""
