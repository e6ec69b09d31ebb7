"""The rule's words, each once: items, groups and what is at fault."""
