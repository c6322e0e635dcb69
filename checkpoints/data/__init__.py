"""The training folder: rows, label fixes, folds, face boxes, summary."""
