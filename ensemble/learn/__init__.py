"""Learn a recipe from out-of-fold predictions; keep the plain mean unless a candidate clearly beats it."""
