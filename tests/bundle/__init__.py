"""Tests of ensemble.bundle."""
