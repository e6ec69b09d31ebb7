"""Which form answers a call, and why the others do not."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from vecrope.inputs import Inputs
from vecrope.spec import MRopeSpec

FORMS = ("eager", "static", "kernels")
OWN_RULE = "own rule"
_LOGGER = logging.getLogger("vecrope")


class FormChoice(NamedTuple):
    """The form that answers a call."""

    form: str  # "eager", "static", "kernels", or "own rule"
    passed_over: dict[str, str]  # the reason for each form that does not answer it


def choose_form(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool, form: str | None, packed: bool = False
) -> str:
    """Return the name of the form that answers a call, and log it at debug level.

    Args:
        inputs: of a call; types, shapes and dtypes have been checked.
        spec: of any family.
        validate: whether values are checked.
        form: the name of a form to be taken, or None.
        packed: whether the input will be packed, as rows of several sequences are.

    Raises:
        ValueError: if `form` is not the name of a form, or that form cannot take the call.
    """
    if form is not None:
        _check_form(form, inputs, spec, validate=validate, packed=packed)
        chosen = form
    elif spec.own_rule is not None:
        chosen = OWN_RULE
    elif torch.compiler.is_compiling():
        return "static"
    elif inputs.input_ids.is_cpu:
        chosen = "eager"
    elif _why_not_kernels(inputs, spec, validate, packed) is None:
        chosen = "kernels"
    else:
        chosen = "static"
    if not torch.compiler.is_compiling() and _LOGGER.isEnabledFor(logging.DEBUG):
        passed_over = _reasons(chosen, inputs, spec, validate, packed, forced=form is not None)
        reasons = ", ".join(f"not {name}: {reason}" for name, reason in passed_over.items())
        _LOGGER.debug("%s, %s: %s (%s)", spec.model_type, spec.convention, chosen, reasons)
    return chosen


def explain_choice(
    inputs: Inputs, spec: MRopeSpec, *, validate: bool, form: str | None, packed: bool = False
) -> FormChoice:
    """Return the choice of `choose_form`, with the reason for each form that is passed over."""
    chosen = choose_form(inputs, spec, validate=validate, form=form, packed=packed)
    forced = form is not None
    return FormChoice(chosen, _reasons(chosen, inputs, spec, validate, packed, forced=forced))


@lru_cache
def fused_pipeline() -> ModuleType | None:
    """Return `vecrope.forms.triton.launch`, or None where Triton is not installed."""
    try:
        from vecrope.forms.triton import launch
    except ImportError:
        return None
    return launch


def _check_form(
    form: str, inputs: Inputs, spec: MRopeSpec, *, validate: bool, packed: bool
) -> None:
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    reason = _why_not(form, inputs, spec, validate, packed)
    if reason is not None:
        raise ValueError(f"form {form!r} cannot take this call: {reason}")


def _reasons(
    chosen: str, inputs: Inputs, spec: MRopeSpec, validate: bool, packed: bool, *, forced: bool
) -> dict[str, str]:
    slower = f"{chosen!r} was asked for" if forced else f"{chosen!r} is faster"
    others = [form for form in FORMS if form != chosen]
    return {form: _why_not(form, inputs, spec, validate, packed) or slower for form in others}


def _why_not(
    form: str, inputs: Inputs, spec: MRopeSpec, validate: bool, packed: bool
) -> str | None:
    """Return why a form cannot take the call, or None where it can."""
    if spec.own_rule is not None:
        return f"{spec.model_type} has a rule of its own"
    if form == "static":
        return None
    if torch.compiler.is_compiling():
        return "the call is traced"
    if form == "kernels":
        return _why_not_kernels(inputs, spec, validate, packed)
    return None if inputs.input_ids.is_cpu else f"input_ids are on {_device(inputs.input_ids)}"


def _why_not_kernels(inputs: Inputs, spec: MRopeSpec, validate: bool, packed: bool) -> str | None:
    ids = inputs.input_ids
    reason = _why_no_kernels_for(ids)
    if reason is not None:
        return reason
    if not spec.frames_by_markers:
        return f"{spec.model_type} does not tell separate frames by markers"
    if packed or inputs.cu_seqlens is not None:
        return "the input is packed"
    if inputs.attention_mask is not None and spec.mask_rule == "ignore":
        return f"{spec.convention} ignores attention_mask"
    if validate and not spec.frames_may_touch:
        return "they do not check that frames are apart"
    return None


def _why_no_kernels_for(ids: Tensor) -> str | None:
    """Return why the kernels cannot take these ids, whatever the family."""
    if not ids.is_cuda:
        return f"input_ids are on {_device(ids)}"
    pipeline = fused_pipeline()
    if pipeline is None:
        return "triton is not installed"
    if not ids.numel():
        return "there is no token"
    if ids.numel() >= pipeline.kernels.MAX_TOKENS:
        return "2**30 tokens and more"
    return None


def _device(ids: Tensor) -> str:
    return f"the {ids.device.type} device"
