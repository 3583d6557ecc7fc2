"""Landmark-constrained learning for lung CT registration."""
