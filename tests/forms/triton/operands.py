"""What the operator of the kernels is given for a call."""

import torch

from vecrope.forms.triton import operator
from vecrope.inputs import Inputs

OPERATOR = torch.ops.vecrope.rope_index


def operands_of(monkeypatch, arguments, spec, *, validate):
    given = []
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.ops.vecrope, "rope_index", lambda *each: given.append(each) or OPERATOR(*each)
        )
        operator.traced_rope_index(Inputs(**arguments), spec, validate=validate)
    (operands,) = given
    return operands
