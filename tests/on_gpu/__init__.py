"""Everything that a person with a GPU runs, in ten minutes; see `tests.on_gpu.__main__`."""
