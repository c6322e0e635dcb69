"""Photographs to weights: the only package that unpickles."""
