"""Tests of ensemble.adopt."""
