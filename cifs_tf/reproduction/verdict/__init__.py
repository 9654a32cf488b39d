"""The study `verdict`: arms and hypotheses as data, cells that train and measure an arm with a seed, and its page."""
