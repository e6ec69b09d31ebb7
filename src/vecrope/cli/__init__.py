"""The parts of `python -m vecrope`; private to the command line."""
