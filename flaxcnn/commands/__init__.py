"""What the terminal sees: one file per command, and main.py with the parser."""
