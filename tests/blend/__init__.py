"""Tests of the blend room."""
