"""The providers by name, made from what is installed and from the wheels that are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import collated, lmms, patched, providers, sglang_omni, upstreams
from bench.provider import Provider

_INSTALLED: dict[str, Callable[[], Provider]] = {
    "vecrope": providers.vecrope_provider,
    "vecrope-unchecked": providers.vecrope_unchecked_provider,
    "vecrope-compiled": providers.vecrope_compiled_provider,
    "vecrope-placeholders": providers.vecrope_placeholders_provider,
    "vecrope-plan": providers.vecrope_plan_provider,
    "vecrope-concatenate": providers.vecrope_concatenate_provider,
    "vecrope-replace": providers.vecrope_replace_provider,
    "vecrope-collate": collated.vecrope_collate_provider,
    "vecrope-batch-positions": collated.vecrope_batch_positions_provider,
    "vecrope-runner": providers.vecrope_runner_provider,
    "vecrope-runner-in-place": providers.vecrope_runner_in_place_provider,
    "dense": providers.dense_provider,
    "loop": providers.loop_provider,
    "vecrope-patched": patched.patched_provider,
    "transformers": upstreams.transformers_provider,
}
# Each with the name of the wheel that it is taken from.
_FROM_WHEELS: dict[str, tuple[Callable[[Path], Provider], str]] = {
    "sglang-old": (upstreams.sglang_provider, "sglang_old"),
    "sglang": (upstreams.sglang_provider, "sglang"),
    "sglang-host": (upstreams.sglang_host_provider, "sglang"),
    "vllm": (upstreams.vllm_provider, "vllm"),
    "text-only": (upstreams.text_only_provider, "sglang"),
    "lmms-engine": (lmms.lmms_engine_provider, "lmms_engine"),
    "sglang-omni": (sglang_omni.sglang_omni_provider, "sglang_omni"),
}

PROVIDERS = (*_INSTALLED, *_FROM_WHEELS)
WHEEL_NAMES = ("sglang", "sglang_old", "vllm", "lmms_engine", "sglang_omni")
# Those that are run beside busy cores by default: eager, on a CPU, and installed.
BUSY_PROVIDERS = (
    *("vecrope", "vecrope-unchecked", "vecrope-placeholders", "vecrope-plan"),
    *("vecrope-concatenate", "vecrope-replace", "transformers"),
)


def make_providers(
    names: Sequence[str] | None, wheels: Mapping[str, Path | None]
) -> list[Provider]:
    """Return the providers of these names, without repeats.

    Args:
        names: out of `PROVIDERS`, or None: all for which there is a wheel where they need one.
        wheels: where each of `WHEEL_NAMES` is, or None for what is not given.

    Raises:
        ValueError: if a wheel is needed and not given, or is not what it must be.
    """
    if names is None:
        given = [name for name, (_, wheel) in _FROM_WHEELS.items() if wheels[wheel]]
        names = [*_INSTALLED, *given]
    return [_make(name, wheels) for name in dict.fromkeys(names)]


def _make(name: str, wheels: Mapping[str, Path | None]) -> Provider:
    if name in _INSTALLED:
        return _INSTALLED[name]()
    factory, wheel = _FROM_WHEELS[name]
    path = wheels[wheel]
    if path is None:
        raise ValueError(f"provider {name} needs --{wheel.replace('_', '-')} PATH")
    return factory(path)
