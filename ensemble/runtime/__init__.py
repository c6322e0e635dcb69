"""Run a checked .onnx model on a device: uint8 pixels ``(B, H, W, 3)`` in, float32 logits ``(B, C)`` out."""
