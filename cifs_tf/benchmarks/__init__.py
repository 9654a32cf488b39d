"""The parts of benchmark.py: a module for each command, its options, the clock, and the tables."""
