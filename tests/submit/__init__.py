"""Tests of the submit room."""
