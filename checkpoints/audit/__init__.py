"""Audit of a training set: label errors, near-duplicates, outliers. See `checkpoints.audit.audit`."""
