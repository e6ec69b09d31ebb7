"""Which form a traced call takes, and why not the eager one."""

import torch

from vecrope import MRopeSpec, explain_form


def test_the_eager_form_is_passed_over_where_the_call_is_traced(monkeypatch):
    spec = MRopeSpec.for_model("glm4v", convention="sglang")
    ids = torch.tensor([[1, 2, 3]])
    assert explain_form(ids, spec).form == "eager"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    choice = explain_form(ids, spec)
    assert choice.form == "static"
    assert choice.passed_over["eager"] == "the call is traced"
