"""Puts vecrope's answer in place of a model's `get_rope_index`, and takes it out again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module

from vecrope.families import FAMILIES
from vecrope.integrations.transformers.calls import Call, call_of
from vecrope.spec import MRopeSpec

VERSIONS = ("5.23",)

_NAME = "get_rope_index"
_Method = Callable[..., tuple[Tensor, Tensor]]
_Target = TypeVar("_Target", Module, type[Module])
# Every method that is ours, and what its class had by that name in its own dictionary.
_OURS: WeakKeyDictionary[_Method, _Method | None] = WeakKeyDictionary()


def patch(target: _Target, *, validate: bool = True) -> _Target:
    """Replace `get_rope_index` of a model of transformers, or of a class of models.

    The signature stays, and so does what is answered: shapes, dtypes, device and values. Grids that
    no token asks for are ignored; a height or width that the merge size does not divide is rounded
    down; a mask's token is whatever is not 0; and the types are believed, not the ids. All else of
    the model is as before: when it calls the method, and the deltas that it keeps.

    Args:
        target: a model, in which every module with the method is patched; it is enough to hand
            over the model that generates. Or a class with the method, such as `Qwen2VLModel`, for
            all of its instances.
        validate: check the values of the input, as `vecrope.get_rope_index` does. On a device other
            than the CPU this synchronises; transformers does, too, for every row and image.

    Returns:
        `target`. To patch it once more changes `validate`. A configuration is read once, when the
        model is patched or, of a class, first called: after a change to it, patch again.

    Raises:
        TypeError: if `target` is neither a module nor a class of modules, or has no such method.
        ValueError: for a family that is not known, or a method that is not transformers' own.
        RuntimeError: for a version of transformers that is not known.

    Where transformers raises although there is an answer, the patched method returns it: for int32
    `input_ids` with a mask, for rows without an unmasked token, for images and frames with nothing
    between them. Where its loop answers only because the tokens of a row add up, or because one
    position is spread over a row, the patched method raises ValueError.

    Example:
        >>> import torch
        >>> from transformers import Qwen2VLConfig
        >>> from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
        >>> from vecrope.integrations.transformers import patch
        >>> with torch.device("meta"):
        ...     model = patch(Qwen2VLModel(Qwen2VLConfig()))
        >>> position_ids, rope_deltas = model.get_rope_index(
        ...     input_ids=torch.tensor([[7, 8, 8, 9]]),
        ...     mm_token_type_ids=torch.tensor([[0, 1, 1, 0]]),
        ...     image_grid_thw=torch.tensor([[1, 2, 4]]),
        ... )
        >>> position_ids[:, 0]
        tensor([[0, 1, 1, 3],
                [0, 1, 1, 3],
                [0, 1, 2, 3]])
    """
    _check_version()
    holders = _holders(target)
    # All are made before any is put in: a model is patched as a whole or not at all.
    methods = [_method(holder, validate) for holder in holders]
    for holder, method in zip(holders, methods, strict=True):
        setattr(holder, _NAME, method)
    return target


def unpatch(target: _Target) -> _Target:
    """Give a model or a class that was patched its own `get_rope_index` back.

    Args:
        target: what was handed to `patch`.

    Returns:
        `target`.

    Raises:
        TypeError: if `target` is neither a module nor a class of modules, or has no such method.
        ValueError: if it is not patched. An instance of a patched class is not, by itself.
    """
    holders = [holder for holder in _holders(target) if _function(holder) in _OURS]
    if not holders:
        raise ValueError(f"{_name_of(target)} is not patched")
    for holder in holders:
        _put_back(holder, _OURS[_function(holder)])
    return target


@contextmanager
def patched(target: _Target, *, validate: bool = True) -> Iterator[_Target]:
    """Patch a model or a class for the time of a `with` block; see `patch`.

    Args:
        target: what to patch.
        validate: check the values of the input.

    Yields:
        `target`. Afterwards it is what it was before, patched or not.
    """
    holders = _holders(target)
    before = [vars(holder).get(_NAME) for holder in holders]
    patch(target, validate=validate)
    try:
        yield target
    finally:
        for holder, method in zip(holders, before, strict=True):
            _put_back(holder, method)


def _holders(target: object) -> list[Any]:
    """Return the class, or the modules, whose `get_rope_index` is meant."""
    if isinstance(target, type) and issubclass(target, Module):
        holders: list[Any] = [target] if hasattr(target, _NAME) else []
    elif isinstance(target, Module):
        holders = [module for module in target.modules() if hasattr(type(module), _NAME)]
    else:
        raise TypeError(f"target must be a model or a class of models, got {target!r}")
    if not holders:
        what = "the class that has it" if isinstance(target, type) else "the model around it"
        raise TypeError(
            f"{_name_of(target)} has no {_NAME}, by itself or in it: hand over {what}, if there is "
            "one"
        )
    return holders


def _method(holder: Any, validate: bool) -> Any:
    """Return what takes the place of `get_rope_index` in a module or a class."""
    cls: Any = holder if isinstance(holder, type) else type(holder)
    own = vars(holder).get(_NAME) if isinstance(holder, type) else None
    if own is not None and own in _OURS:
        own = _OURS[own]
    original = inspect.unwrap(getattr(cls, _NAME), stop=lambda method: method not in _OURS)
    if not original.__module__.startswith("transformers.models."):
        raise ValueError(
            f"{_NAME} of {cls.__name__} must be one of transformers, got that of "
            f"{original.__module__}: call vecrope.get_rope_index in it"
        )
    config = cls.config_class if isinstance(holder, type) else holder.config
    families = [name for name, family in FAMILIES.items() if "transformers" in family.rules]
    if config.model_type not in families:
        raise ValueError(
            f"{cls.__name__} must have one of the model types {', '.join(families)}, got "
            f"{config.model_type!r}"
        )
    call = call_of(config.model_type)
    _check_signature(cls, original, call)
    specs: WeakKeyDictionary[Module, MRopeSpec] = WeakKeyDictionary()

    def spec_of(model: Module) -> MRopeSpec:
        if model not in specs:
            specs[model] = MRopeSpec.from_config(model.config, convention="transformers")
        return specs[model]

    @functools.wraps(original)
    def get_rope_index(self: Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return call(self, spec_of(self), validate, *args, **kwargs)

    _OURS[get_rope_index] = own
    if isinstance(holder, type):
        return get_rope_index
    spec_of(holder)
    return MethodType(get_rope_index, holder)


def _check_signature(cls: type, original: _Method, call: Call) -> None:
    """Check that a method takes what its answer does."""
    theirs = list(inspect.signature(original).parameters.values())[1:]
    ours = list(inspect.signature(call).parameters.values())[3:]
    shapes = [[(each.name, each.kind, each.default) for each in every] for every in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(
            f"{_NAME} of {cls.__name__} must take ({', '.join(each.name for each in ours)}), got "
            f"({', '.join(each.name for each in theirs)}): this transformers is not the released "
            f"{' or '.join(VERSIONS)}"
        )


def _function(holder: Any) -> Any:
    """Return the function that stands in a holder's own dictionary, or None."""
    method = vars(holder).get(_NAME)
    return getattr(method, "__func__", method)


def _put_back(holder: Any, method: Any) -> None:
    if method is None:
        delattr(holder, _NAME)
    else:
        setattr(holder, _NAME, method)


def _name_of(target: Any) -> str:
    return target.__name__ if isinstance(target, type) else type(target).__name__


def _check_version() -> None:
    import transformers

    version = transformers.__version__
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        raise RuntimeError(
            f"transformers must be of version {' or '.join(VERSIONS)}, got {version}: install "
            f"'transformers=={VERSIONS[-1]}.*', or a vecrope that knows {version}"
        )
