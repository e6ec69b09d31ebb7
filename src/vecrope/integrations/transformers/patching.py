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

from vecrope.integrations.transformers.admission import Check, examine
from vecrope.integrations.transformers.bound import BoundMethod, is_of_class
from vecrope.integrations.transformers.calls import Call
from vecrope.spec import MRopeSpec

_NAME = "get_rope_index"
_Method = Callable[..., tuple[Tensor, Tensor]]
_Target = TypeVar("_Target", Module, type[Module])
# Every method of a class that is ours, and what the class had in its own dictionary.
_OURS: WeakKeyDictionary[_Method, _Method | None] = WeakKeyDictionary()


def patch(target: _Target, *, validate: bool = True, check: Check = "self") -> _Target:
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
        check: how a method is proven to give the same answers. It is looked up by its fingerprint,
            a hash of its code and of all that it calls in transformers, in a table of those that
            were run. `"known"`: what is not in the table is refused. `"self"`: it is compared with
            vecrope's on some dozens of prompts, made for the model's configuration; a difference
            is refused, with the prompt, and agreement warns once. `"always"`: it is compared in
            any case, and so is a method from outside of transformers: remote code, a
            subclass, a function on an instance. The comparison runs on the CPU and touches neither
            the model nor any global state; that of a class is made at the first call.

    Returns:
        `target`. To patch it once more changes `validate`. A configuration is read once, when the
        model is patched or, of a class, first called: after a change to it, patch again.

    Raises:
        TypeError: if `target` is neither a module nor a class of modules, or has no such method.
        ValueError: for a family that is not known, or a method from outside of transformers.
        RuntimeError: for a method that does not give the same answers, is not known to, where it
            has to be, or has another signature; of a class that is to be compared, also if its
            first call is in a graph: patch the model, or call it once.

    Where transformers raises although there is an answer, the patched method returns it: for int32
    `input_ids` with a mask, for rows without an unmasked token, for images and frames with nothing
    between them. Where its loop answers only because the tokens of a row add up, or because one
    position is spread over a row, the patched method raises ValueError; if a further grid fills
    that run, it answers by the grids.

    A pickled model comes back with the method of its class, a copied one patched for itself.

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
    holders = _holders(target)
    # All are made before any is put in: a model is patched as a whole or not at all.
    methods = [_method(holder, validate, check) for holder in holders]
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
    holders = [holder for holder in _holders(target) if _is_ours(vars(holder).get(_NAME))]
    if not holders:
        raise ValueError(f"{_name_of(target)} is not patched")
    for holder in holders:
        _put_back(holder, _replaced(vars(holder)[_NAME], holder))
    return target


@contextmanager
def patched(target: _Target, *, validate: bool = True, check: Check = "self") -> Iterator[_Target]:
    """Patch a model or a class for the time of a `with` block; see `patch`.

    Args:
        target: what to patch.
        validate: check the values of the input.
        check: how a method is proven to give the same answers.

    Yields:
        `target`. Afterwards it is what it was before, patched or not.
    """
    holders = _holders(target)
    before = [vars(holder).get(_NAME) for holder in holders]
    patch(target, validate=validate, check=check)
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


def _method(holder: Any, validate: bool, check: Check) -> Any:
    """Return what takes the place of `get_rope_index` in a module or a class."""
    is_class = isinstance(holder, type)
    cls: Any = holder if is_class else type(holder)
    own = vars(holder).get(_NAME)
    if _is_ours(own) or is_of_class(own):
        own = _replaced(own, holder)
    original = _unbound(own, holder) if own is not None else _of_class(cls)
    config = cls.config_class if is_class else holder.config
    method = examine(original, cls, config.model_type, check)
    takes = {each.name for each in inspect.signature(original).parameters.values()}
    takes_all = any(
        each.kind is inspect.Parameter.VAR_KEYWORD
        for each in inspect.signature(original).parameters.values()
    )
    rules: WeakKeyDictionary[Module, tuple[Call, MRopeSpec]] = WeakKeyDictionary()

    def rules_of(model: Module) -> tuple[Call, MRopeSpec]:
        if model not in rules:
            rules[model] = method.rules_of(model.config)
        return rules[model]

    @functools.wraps(original)
    def get_rope_index(self: Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not takes_all and not takes.issuperset(kwargs):
            unknown = next(name for name in kwargs if name not in takes)
            raise TypeError(f"get_rope_index got an unexpected keyword argument {unknown!r}")
        call, spec = rules_of(self)
        return call(self, spec, validate, *args, **kwargs)

    if is_class:
        _OURS[get_rope_index] = own
        return get_rope_index
    rules_of(holder)
    return BoundMethod(get_rope_index, holder, own)


def _of_class(cls: Any) -> _Method:
    """Return the method that a class has, or inherits, apart from ours."""
    method = getattr(cls, _NAME)
    return inspect.unwrap(method, stop=lambda each: each not in _OURS)  # type: ignore[no-any-return]


def _unbound(own: Any, holder: Any) -> _Method:
    """Return what a class or an instance has of its own, as a function of the model."""
    if isinstance(holder, type):
        return own  # type: ignore[no-any-return]
    if isinstance(own, MethodType) and own.__self__ is holder:
        return own.__func__

    def unbound(self: Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG001
        return own(*args, **kwargs)  # type: ignore[no-any-return]

    parameters = list(inspect.signature(own).parameters.values())
    model = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    functools.update_wrapper(unbound, own)
    unbound.of_instance = own  # type: ignore[attr-defined]
    unbound.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [model, *(each.replace(kind=each.kind) for each in parameters)]
    )
    return unbound


def _is_ours(method: Any) -> bool:
    if isinstance(method, BoundMethod):
        return True
    # A class's is found on an instance where somebody has put it there.
    function = getattr(method, "__func__", method)
    return inspect.isfunction(function) and function in _OURS


def _replaced(method: Any, holder: Any) -> Any:
    """Return what stood in a holder's own dictionary before ours, or None."""
    if isinstance(method, BoundMethod):
        return method.replaced
    return _OURS.get(method) if isinstance(holder, type) else None


def _put_back(holder: Any, method: Any) -> None:
    if method is None:
        delattr(holder, _NAME)
    else:
        setattr(holder, _NAME, method)


def _name_of(target: Any) -> str:
    return target.__name__ if isinstance(target, type) else type(target).__name__
