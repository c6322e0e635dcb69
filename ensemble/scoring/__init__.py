"""Contest metrics: each one vectorised over bootstrap resamples, for exclusive classes and for independent labels."""
