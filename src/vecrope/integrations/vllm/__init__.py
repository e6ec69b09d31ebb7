"""A general plugin of vLLM, by which its models' `get_mrope_input_positions` are vecrope's.

vLLM calls `register` through the entry point `vecrope` of the group `vllm.general_plugins`. What
the features of a prompt say is read by the models' own generators; only the positions are computed
here. Importing this package does not import vLLM.
"""

from vecrope.integrations.vllm.plugin import refusals, register, unregister

__all__ = ["refusals", "register", "unregister"]
