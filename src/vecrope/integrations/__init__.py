"""The upstreams' own functions, answered by vecrope: one module for each, to swap an import for.

Each keeps its upstream's name, arguments and answers, and imports nothing of it.
"""
