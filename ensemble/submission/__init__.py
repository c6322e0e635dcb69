"""The submission CSV: its format, lint and diff."""
