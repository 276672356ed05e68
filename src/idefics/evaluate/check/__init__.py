"""`idefics check`: whether this installation answers with these weights as it should."""
