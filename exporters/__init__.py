"""Weights to model.onnx: the only package that touches ``torch.onnx``."""
