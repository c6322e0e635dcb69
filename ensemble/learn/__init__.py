"""Learn a recipe from out-of-fold predictions; adopt it only if it clearly beats the plain mean."""

from ensemble.learn.learn import learn

__all__ = ["learn"]
