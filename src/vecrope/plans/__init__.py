"""The positions of a batch as a plan, expanded where they are needed."""
