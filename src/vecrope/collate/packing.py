"""Whether models can keep packed samples apart where this runs."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

from vecrope.collate.fields import LINEAR_ATTENTION, NO_TEXT_ROW

# The modules that take sequence boundaries, and the packages that bring them.
_KERNELS = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}


def missing_kernels() -> list[str]:
    """Return the packages that are not installed of those that linear attention needs."""
    return [package for module, package in _KERNELS.items() if find_spec(module) is None]


@cache  # so that a loader warns once in each of its workers
def warn_of_obstacles(model_type: str) -> None:
    """Warn that models of this family may not keep packed samples apart, if so."""
    missing = missing_kernels() if model_type in LINEAR_ATTENTION else []
    if missing:
        warnings.warn(
            f"{model_type} has layers of linear attention, which need {' and '.join(missing)} to "
            "keep packed samples apart, not found here: where the model runs without them, use "
            "packed=False",
            stacklevel=3,
        )
    if model_type in NO_TEXT_ROW:
        warnings.warn(f"{model_type}: {_FLASH_ALONE}", stacklevel=3)


_FLASH_ALONE = (
    "transformers' model takes no row of text positions, so that flash attention alone, which "
    "reads cu_seq_lens_q, keeps packed samples apart"
)


def packing_obstacles(model: Any) -> list[str]:
    """Return why a model of transformers cannot keep packed samples apart here; [] if it can.

    `collate` cannot see the model, which may run in another process. Call this beside the model,
    before training on packed batches. It reads the configuration, and looks for packages.

    Args:
        model: a model of transformers, or its configuration.

    Returns:
        A sentence for each obstacle: layers of linear attention without the kernels that take
        boundaries; a model that takes no row of text positions, without flash attention; and a
        cache, which hides the boundaries from attention.

    Raises:
        TypeError: for a name.

    Example:
        >>> from types import SimpleNamespace
        >>> text_config = SimpleNamespace(layer_types=["full_attention"], use_cache=False)
        >>> packing_obstacles(SimpleNamespace(text_config=text_config))
        []
    """
    if isinstance(model, str):
        raise TypeError(f"model must be a model or its configuration, got {model!r}")
    config = getattr(model, "config", model)
    kernel = getattr(config, "_attn_implementation", None) or ""
    config = getattr(config, "thinker_config", config)
    text = getattr(config, "text_config", config)
    obstacles = []
    layers = getattr(text, "layer_types", None) or ()
    missing = missing_kernels()
    if "linear_attention" in layers and missing:
        obstacles.append(
            f"{list(layers).count('linear_attention')} of its {len(layers)} layers are linear "
            f"attention, which needs {' and '.join(missing)} to keep samples apart: not found here"
        )
    if getattr(config, "model_type", None) in NO_TEXT_ROW and "flash" not in kernel:
        obstacles.append(f"{_FLASH_ALONE}; its attention is {kernel or 'eager'!r}")
    if getattr(text, "use_cache", False):
        obstacles.append(
            "use_cache is on in its text model, and with a cache attention does not look at where "
            "text positions start over: pass use_cache=False, which collate returns"
        )
    return obstacles
