"""The time after which a test is taken to hang."""

HANG = 900.0
"""Seconds. No test that works comes near it, however busy the machine is: it only ends what would never end."""
