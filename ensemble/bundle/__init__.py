"""Folders that hand an ensemble over: to a colleague, the Hugging Face Hub, Kaggle or a Triton server."""
