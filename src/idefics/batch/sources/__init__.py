"""The inputs of batch runs: files, folders, archives, tables, documents and data sets become rows, read lazily."""
