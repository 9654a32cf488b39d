"""From a trained run to an endpoint: publishing, a server that speaks TF Serving's protocol, a client."""
