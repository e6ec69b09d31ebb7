"""The forms in which the shared rule is computed."""
