"""Linear heads on the features of a frozen ONNX network. See `checkpoints.probe.probe_member`."""
