"""The toy contest and `ens demo`."""
