"""Neural network modules and functions shared by the model families; sized by configs, independent of families."""
