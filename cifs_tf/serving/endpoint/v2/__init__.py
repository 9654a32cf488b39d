"""The Open Inference Protocol (v2), for REST and gRPC alike."""
