"""The parts of the benchmark: what is timed, how, on which hardware, and the tables."""
