"""Benchmark `ens` against plain PyTorch and plain onnxruntime loops on this machine."""
