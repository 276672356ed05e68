"""Ids and picture tensors in, ids out. No text, no families."""
