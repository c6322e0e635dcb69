"""Training data: images, label fixes, folds, face detection, summary."""
