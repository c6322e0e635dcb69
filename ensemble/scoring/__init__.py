"""Contest metrics: each one vectorized over bootstrap resamples, for exclusive classes and for independent labels."""
