"""The served models: their folders and versions, how one is loaded, what it takes, and its classes and scores."""
