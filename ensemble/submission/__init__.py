"""Write, check and compare submission CSV files."""
