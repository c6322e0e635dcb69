"""Tests of the predict room."""
