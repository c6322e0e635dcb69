"""Text and tables that people or other programs wrote, read strictly and within bounds; and tables for the terminal."""
