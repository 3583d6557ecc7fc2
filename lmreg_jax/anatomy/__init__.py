"""What is found in one chest CT: airways and landmarks. NumPy and SciPy only."""
