"""Make a member of a ready-made ONNX classifier: preprocessing in front, logits behind, a card inside; no torch."""
