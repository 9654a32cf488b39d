"""The REST APIs over HTTP: paths, connections, and the processes that read large bodies."""
