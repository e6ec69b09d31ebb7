"""The rooms behind `python -m vecrope`; private to the command line."""
