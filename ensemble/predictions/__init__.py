"""Read predictions (Parquet of `ens predict`, external CSV and npz files, out-of-fold folds) and the ground truth."""

from ensemble.predictions.dataset import Predictions, read_predictions

__all__ = ["Predictions", "read_predictions"]
