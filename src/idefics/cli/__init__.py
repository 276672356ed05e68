"""The command line: parses arguments, calls `Idefics` and prints the answers."""
