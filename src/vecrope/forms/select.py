"""Which form answers a call, and why the others do not."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.core.faults import MAX_TOKENS
from vecrope.families.fields import check_one_of
from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

FORMS = ("eager", "static", "kernels")
OWN_RULE = "own rule"
HAS_TRITON = find_spec("triton") is not None
# ROCm's devices are called "cuda", too.
_TRITON_DEVICES = ("cuda", "xpu")
_LOGGER = logging.getLogger("vecrope")


class FormChoice(NamedTuple):
    """The form that answers a call."""

    form: str  # "eager", "static", "kernels", or "own rule"
    passed_over: dict[str, str]  # the reason for each form that does not answer it


def choose_form(inputs: Inputs, spec: MRopeSpec, *, form: str | None) -> str:
    """Return the name of the form that answers a call, and log it at debug level.

    Raises:
        ValueError: if `form` is not the name of a form, or that form cannot take the call.
    """
    traced = torch.compiler.is_compiling()
    if form is not None:
        check_one_of("form", form, FORMS)
        if (reason := _why_not(form, inputs, spec)) is not None:
            raise ValueError(f"form {form!r} cannot take this call: {reason}")
        chosen = form
    elif spec.own_rule is not None:
        chosen = OWN_RULE
    elif inputs.input_ids.is_cpu and not traced:
        chosen = "eager"
    else:
        chosen = "static" if _why_no_kernels_for(inputs.input_ids) else "kernels"
    if not traced and _LOGGER.isEnabledFor(logging.DEBUG):
        passed_over = _reasons(chosen, inputs, spec, form)
        reasons = ", ".join(f"not {name}: {reason}" for name, reason in passed_over.items())
        _LOGGER.debug("%s, %s: %s (%s)", spec.model_type, spec.convention, chosen, reasons)
    return chosen


def explain_choice(inputs: Inputs, spec: MRopeSpec, *, form: str | None) -> FormChoice:
    """Return the choice of `choose_form`, with the reason for each form that is passed over."""
    chosen = choose_form(inputs, spec, form=form)
    return FormChoice(chosen, _reasons(chosen, inputs, spec, form))


@lru_cache
def fused_pipeline() -> ModuleType:
    """Return `vecrope.forms.triton.launch`, which imports Triton."""
    from vecrope.forms.triton import launch

    return launch


@lru_cache
def plan_kernels() -> ModuleType:
    """Return `vecrope.forms.triton.plans`, which imports Triton."""
    from vecrope.forms.triton import plans

    return plans


def takes_kernels(values: Tensor) -> bool:
    """Say whether the kernels can take a tensor where a call is not traced."""
    return (
        not torch.compiler.is_compiling()
        and type(values) is Tensor
        and _why_no_kernels_for(values) is None
    )


def _reasons(chosen: str, inputs: Inputs, spec: MRopeSpec, form: str | None) -> dict[str, str]:
    slower = f"{chosen!r} is faster" if form is None else f"{chosen!r} was asked for"
    return {name: _why_not(name, inputs, spec) or slower for name in FORMS if name != chosen}


def _why_not(form: str, inputs: Inputs, spec: MRopeSpec) -> str | None:
    """Return why a form cannot take the call, or None where it can."""
    ids = inputs.input_ids
    if spec.own_rule is not None:
        return f"{spec.model_type} has a rule of its own"
    if form == "kernels":
        return _why_no_kernels_for(ids)
    if form == "eager" and torch.compiler.is_compiling():
        return "the call is traced"
    return None if form == "static" or ids.is_cpu else _where(ids)


def _why_no_kernels_for(ids: Tensor) -> str | None:
    """Return why the kernels cannot take these ids, whatever the family."""
    # To ask a device for its type takes as long as an operator.
    if ids.is_cpu or ids.device.type not in _TRITON_DEVICES:
        return _where(ids)
    if not HAS_TRITON:
        return "triton is not installed"
    # `torch.compiler.is_exporting()` is true under `torch.compile`, too, up to torch 2.11.
    if getattr(torch.compiler, "_is_exporting_flag", False):
        return "the call is exported"
    if not ids.numel():
        return "there is no token"
    return "2**30 tokens and more" if ids.numel() >= MAX_TOKENS else None


def _where(ids: Tensor) -> str:
    return f"input_ids are on the {'cpu' if ids.is_cpu else ids.device.type} device"
