"""Learn a recipe from out-of-fold predictions; keep the plain mean unless a candidate clearly beats it."""

from ensemble.learn.learn import learn

__all__ = ["learn"]
