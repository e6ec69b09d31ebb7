"""MiniCPM-V 4.7."""
