"""Long checks, each a program of its own: fuzz, kills, stops, night, mutate; and tests that run them briefly."""
