"""Batch runs: rows of any input are answered once each, kept in a ledger, and exported in any form."""
