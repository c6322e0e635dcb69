"""Fixtures and helpers that several test files use."""
