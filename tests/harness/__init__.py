"""Long-running checks, each a program of its own: fuzz, kills, night, mutate; and the tests that run them briefly."""
