"""Training data, checkpoint loading and training: from images to weights. The only package that unpickles."""
