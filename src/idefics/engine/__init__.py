"""The inference engine: a `Prompt` of token ids and preprocessed images in, token ids out. Knows no text, no families."""
