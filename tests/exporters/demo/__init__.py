"""Tests of exporters/demo."""
