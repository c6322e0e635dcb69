"""Tests of `checkpoints.audit`."""
