"""Training by several processes: what starts them on this machine, or one of them by hand or on a cluster."""
