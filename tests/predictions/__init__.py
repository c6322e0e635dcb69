"""Tests of the predictions room."""
