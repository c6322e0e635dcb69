"""The suite: every docstring of a test is a claim that could be false."""
