"""Evaluation of models on data sets: suites, metrics, intervals and comparisons."""
