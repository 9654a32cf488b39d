"""The parts of benchmark.py: a module for each command, its options, the clock, and the tables.

The module of a command has `run(options, report)`: it measures what its options ask for, calls `report` with a line of
text whenever a part is done, and returns what goes into the JSON file.
"""
