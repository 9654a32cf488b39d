"""Programs that a person starts: training, measuring, comparing."""
