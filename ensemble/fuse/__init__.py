"""A recipe and its members in one ONNX file: pixels of any size in, the ensemble's answer out."""
