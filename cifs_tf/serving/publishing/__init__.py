"""From a run to a version that a server loads: its files, model card, warm-up requests, an 8-bit variant."""
