"""The server, part by part: JSON and gRPC codecs, versions of models, and the way from a request to an answer."""
