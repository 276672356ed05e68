"""Words and pictures in, `Prompt` out; ids in, words out. Knows no torch and no family."""
