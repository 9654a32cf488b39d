"""The parts of export: reading a run, its model card, warm-up requests, an 8-bit variant."""
