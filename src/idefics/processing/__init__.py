"""Turns text and pictures into a `Prompt`, and token ids into text. Independent of torch and of model families."""
