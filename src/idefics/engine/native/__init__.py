"""The decode step as one call into C, from token ids to logits, on a CPU: see docs/native.md."""
