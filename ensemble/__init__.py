"""Trained image classifiers to a submission you can trust.

photographs -> checkpoints/ -> .safetensors -> exporters/ -> .onnx -> ensemble/ -> predictions -> submission.csv
imports:       exporters  --->  checkpoints  --->  ensemble            (never the other way)
"""
