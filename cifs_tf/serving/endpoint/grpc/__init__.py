"""The gRPC services, TF Serving's and the Open Inference Protocol's."""
