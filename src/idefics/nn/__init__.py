"""Tensors in, tensors out. Numbers, never family names."""
