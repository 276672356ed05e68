"""The command line: a thin door. Nothing here imports torch before there is something to answer."""
