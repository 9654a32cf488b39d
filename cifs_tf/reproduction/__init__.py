"""The parts of reproduce.py: what the paper's tables are, what has to be done for them, doing it, and writing them."""
