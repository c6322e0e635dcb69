"""Tests of ensemble.fuse."""
