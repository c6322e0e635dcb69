"""Load any checkpoint file into float32 weights under timm's names, without running code from the file."""
