"""The `lmreg` command: two scans in, an alignment out."""
