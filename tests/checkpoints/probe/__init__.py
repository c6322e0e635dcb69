"""Tests of `checkpoints.probe`."""
