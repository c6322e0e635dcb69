"""Tests of the submission room."""
