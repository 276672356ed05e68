"""The inference engine: `Prompt`s of token ids and preprocessed images in, token ids out. Independent of text."""
