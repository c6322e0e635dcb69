"""Tests of the contest metrics."""
