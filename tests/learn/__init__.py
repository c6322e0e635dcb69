"""Tests of the learn room."""
