"""TF Serving's JSON, read and written as RapidJSON does: its grammar, and the bodies of requests and answers."""
