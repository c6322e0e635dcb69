"""Train a member: epochs, folds, resumable state, several processes."""
