"""Read predictions back: the Parquet folders of `ens predict`, CSV and npz from elsewhere, out-of-fold, the truth."""

from ensemble.predictions.dataset import Predictions, read_predictions

__all__ = ["Predictions", "read_predictions"]
