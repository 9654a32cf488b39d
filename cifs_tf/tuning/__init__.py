"""The parts of `training/tune.py`: what is searched, who remembers, one trial, several processes, the outcome."""
