"""The parts of reproduce.py: the paper's tables as data, the plan, the runner, the results, and their files."""
