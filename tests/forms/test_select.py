"""Which form a call takes, and what is said of the others."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from oracles import RULES, spec_of
from own_support import SPECS as OWN

import vecrope
from vecrope import explain_form, get_rope_index
from vecrope.forms import select
from vecrope.inputs import Inputs

GLM = spec_of("glm4v", "sglang")
IDS = torch.tensor([[5, 6, 7]])


def on_cuda(spec=GLM, *, numel=3, form=None, **arguments):
    """Return the choice for ids of a CUDA device, of which nothing else is looked at."""
    ids = SimpleNamespace(
        is_cuda=True, is_cpu=False, numel=lambda: numel, device=SimpleNamespace(type="cuda")
    )
    inputs = Inputs(ids, **arguments)
    return select.explain_choice(inputs, spec, form=form)


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    monkeypatch.setattr(select, "HAS_TRITON", True)


@pytest.mark.parametrize("validate", [True, False])
def test_on_a_cpu_the_eager_form_answers(validate):
    choice = explain_form(IDS, GLM, validate=validate)
    assert choice.form == "eager"
    assert choice.passed_over == {
        "static": "'eager' is faster",
        "kernels": "input_ids are on the cpu device",
    }


def test_on_another_device_the_static_form_answers():
    choice = explain_form(IDS.to("meta"), GLM)
    assert choice.form == "static"
    assert choice.passed_over == {
        "eager": "input_ids are on the meta device",
        "kernels": "input_ids are on the meta device",
    }


def test_on_cuda_the_kernels_answer():
    choice = on_cuda()
    assert choice.form == "kernels"
    assert choice.passed_over == {
        "eager": "input_ids are on the cuda device",
        "static": "'kernels' is faster",
    }


@pytest.mark.parametrize("spec", RULES, ids=str)
def test_the_kernels_take_every_rule_and_packed_input(spec):
    for arguments in ({}, {"cu_seqlens": IDS[0], "attention_mask": IDS}):
        assert on_cuda(spec, **arguments).form == "kernels"


@pytest.mark.parametrize(
    ("numel", "reason"), [(0, "there is no token"), (2**30, "2**30 tokens and more")]
)
def test_what_the_kernels_cannot_take(numel, reason):
    choice = on_cuda(numel=numel)
    assert (choice.form, choice.passed_over["kernels"]) == ("static", reason)
    with pytest.raises(
        ValueError, match=re.escape(f"form 'kernels' cannot take this call: {reason}")
    ):
        on_cuda(form="kernels", numel=numel)


def test_without_triton(monkeypatch):
    monkeypatch.setattr(select, "HAS_TRITON", False)
    assert on_cuda().passed_over["kernels"] == "triton is not installed"


def test_what_is_exported_takes_the_static_form(monkeypatch):
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    assert on_cuda().passed_over["kernels"] == "the call is exported"


@pytest.mark.parametrize("form", ["eager", "static"])
def test_a_form_can_be_forced(form):
    position_ids, _ = get_rope_index(IDS, GLM, form=form)
    assert position_ids[0].tolist() == [[0, 1, 2]]
    choice = explain_form(IDS, GLM, form=form)
    assert choice.form == form
    assert f"{form!r} was asked for" in choice.passed_over.values()


@pytest.mark.parametrize("form", ["eager", "static"])
def test_a_forced_form_answers_by_plan_too(form):
    position_ids, _ = get_rope_index(IDS, GLM, form=form, text_positions=True)
    assert position_ids.tolist() == [[[0, 1, 2]]] * 4
    assert explain_form(IDS, GLM, form=form, text_positions=True).form == form


@pytest.mark.parametrize(
    ("ids", "spec", "form", "message"),
    [
        (IDS, GLM, "fast", "form must be one of 'eager', 'static', 'kernels', got 'fast'"),
        (
            IDS,
            GLM,
            "kernels",
            "form 'kernels' cannot take this call: input_ids are on the cpu device",
        ),
        (
            IDS.to("meta"),
            GLM,
            "eager",
            "form 'eager' cannot take this call: input_ids are on the meta device",
        ),
    ],
    ids=["unknown", "kernels on a CPU", "eager elsewhere"],
)
def test_a_form_that_cannot_take_the_call_is_refused(ids, spec, form, message):
    for function in (get_rope_index, explain_form):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            function(ids, spec, form=form)


@pytest.mark.parametrize("spec", OWN.values(), ids=OWN)
def test_a_family_with_a_rule_of_its_own_takes_no_form(spec):
    choice = explain_form(IDS, spec)
    reason = f"{spec.model_type} has a rule of its own"
    assert choice.form == "own rule"
    assert choice.passed_over == dict.fromkeys(("eager", "static", "kernels"), reason)
    with pytest.raises(ValueError, match=re.escape(f"cannot take this call: {reason}")):
        get_rope_index(IDS, spec, form="static")


def test_what_is_explained_is_checked():
    with pytest.raises(TypeError, match="unexpected keyword argument 'frames'"):
        explain_form(IDS, GLM, frames=3)
    with pytest.raises(ValueError, match="input_ids must have shape"):
        explain_form(IDS[0], GLM)


def test_under_tracing_the_static_form_answers():
    chosen = []

    def traced(ids):
        chosen.append(vecrope.forms.select.choose_form(Inputs(ids), GLM, form=None))
        return get_rope_index(ids, GLM)

    torch.compile(traced, backend="eager", fullgraph=False)(IDS)
    assert "static" in chosen
    with pytest.raises(Exception, match="form 'eager' cannot take this call: the call is traced"):
        torch.compile(get_rope_index, backend="eager", fullgraph=True)(IDS, GLM, form="eager")


def test_the_choice_is_logged_at_debug_level(caplog):
    with caplog.at_level(logging.INFO, logger="vecrope"):
        get_rope_index(IDS, GLM)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="vecrope"):
        get_rope_index(IDS, GLM)
    assert [record.getMessage() for record in caplog.records] == [
        "glm4v, sglang: eager (not static: 'eager' is faster, "
        "not kernels: input_ids are on the cpu device)"
    ]


def test_the_kernels_are_imported_where_they_are_asked_for():
    pytest.importorskip("triton", reason="needs Triton")
    names = [select.fused_pipeline().__name__, select.plan_kernels().__name__]
    assert names == ["vecrope.forms.triton.launch", "vecrope.forms.triton.plans"]


def test_the_kernels_answer_unless_they_find_a_fault(monkeypatch):
    answer = []
    stub = SimpleNamespace(fused_rope_index=lambda *_, **__: answer.pop())
    monkeypatch.setattr(select, "_why_no_kernels_for", lambda _: None)
    monkeypatch.setattr("vecrope.rope_index.fused_pipeline", lambda: stub)
    answer.append(("positions", "deltas"))
    assert get_rope_index(IDS, GLM, form="kernels") == ("positions", "deltas")
    answer.append(None)
    with pytest.raises(ValueError, match=r"image_grid_thw row 0 .1, 2, 2. is left over"):
        get_rope_index(IDS, GLM, image_grid_thw=torch.tensor([[1, 2, 2]]), form="kernels")


def test_what_misfits_and_is_not_checked_has_the_static_answer():
    misfit = {"image_grid_thw": torch.tensor([[1, 2, 4]]), "validate": False}
    ids = torch.tensor([[5, GLM.image_token_id, 7]])
    for ours, static in zip(
        get_rope_index(ids, GLM, **misfit),
        get_rope_index(ids, GLM, **misfit, form="static"),
        strict=True,
    ):
        assert torch.equal(ours, static)


@pytest.mark.parametrize("name", ["image_grid_thw", "video_grid_thw"])
def test_grids_follow_the_ids_to_their_device(name):
    grids = {name: torch.tensor([[1, 2, 2]])}
    position_ids, rope_deltas = get_rope_index(IDS.to("meta"), GLM, **grids, validate=False)
    assert (position_ids.device.type, position_ids.shape) == ("meta", (3, 1, 3))
    assert (rope_deltas.device.type, rope_deltas.shape) == ("meta", (1, 1))
