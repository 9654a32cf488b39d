"""Robustness cards: a report with the images that prove it, and their verification."""
