"""Metrics as pure functions: texts and numbers in, numbers out; nothing of the model or of PyTorch.

A score belongs to one row and is between 0 and 1 unless its function says otherwise. The score of a data set is the
mean over its rows, except for `ranking.roc_auc`, which is computed from all rows at once.
"""
