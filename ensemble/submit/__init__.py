"""Apply a saved recipe from images to CSV in one run, with early exit and a time budget."""

from ensemble.submit.submit import submit

__all__ = ["submit"]
