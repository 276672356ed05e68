"""Places the modules of a model on devices, and moves their inputs there.

`devices` checks the caller's arguments and compares needed and free memory; `assignment` turns the arguments into a
device for each module, and moves tensors between devices while the model runs.
"""
