"""What an evaluation found, as one record, a page and figures."""
