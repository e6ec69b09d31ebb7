"""The tables of the READMEs: which rows of the committed files each one shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A workload and a size by the heading of a line. The size is the padded length, or the number of
# sequences where they are packed.
Lines = Mapping[str, tuple[str, int]]
# By the heading of a column, what is appended to a line's workload, and the provider.
Columns = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table of times, in microseconds.

    Attributes:
        device: `"cpu"` or `"gpu"`.
        corner: the heading of the lines.
        columns: see `Columns`.
        lines: see `Lines`; those with fewer than `least` times are left out.
        over: a provider; a cell then says in brackets how many times as long this one takes, and is
            empty without it.
        busy: whether to show what was measured beside busy cores.
        least: how many times a line must have.
    """

    device: str
    corner: str
    columns: Columns
    lines: Lines
    over: str | None = None
    busy: bool = False
    least: int = 1


UPSTREAMS = {
    "transformers": "transformers",
    "sglang": "SGLang",
    "sglang-host": "SGLang, ids on the host",
    "vllm": "vLLM",
    "lmms-engine": "lmms-engine",
    "sglang-omni": "sglang-omni",
}

FAMILIES = ("glm4v", "qwen2_5_vl", "qwen3_vl", "ernie4_5_vl_moe")
_OWN_RULES = {
    "GLM-Image": "glm_image",
    "HunyuanVL": "hunyuan_vl",
    "Isaac": "isaac",
    "Bailing": "bailing_moe_v3_vl",
    "Bailing, pictures": "bailing_moe_v3_vl-pictures",
    "MiniCPM-V 4.7": "minicpmv4_7",
}

_PROMPTS = {
    f"one prompt, {size:,} tokens": ("mixed", size) for size in (400, 1000, 4000, 16384, 131072)
}
_PADDED = {
    "8 padded rows of up to 1,000": ("mixed-batch", 1000),
    "32 padded rows of up to 4,000": ("mixed-batch", 4000),
}
_PACKED = {
    "16 packed sequences of up to 1,000": ("mixed-packed", 16),
    "32 packed sequences of up to 4,000": ("mixed-packed", 32),
}
_PICTURES = {
    "one prompt of 300 tokens, two pictures": ("pictures", 300),
    "2 padded rows of up to 300, a picture each": ("pictures-batch", 300),
    "2 packed sequences of up to 300, a picture each": ("pictures-packed", 2),
}
_MIXED = {**_PROMPTS, **_PADDED, **_PACKED, **_PICTURES}
_ON_GPU = {
    **{
        f"one prompt, {size:,} tokens": ("mixed", size)
        for size in (20, 245, 889, 4034, 16354, 32000, 130929)
    },
    **_PADDED,
    **_PACKED,
}
_UNIFORM = {
    "300 tokens, a small image and a frame": ("short", 300),
    "1,024 tokens, an image and a frame": ("seed", 1024),
    "16,384 tokens, the same": ("seed", 16384),
    "131,072 tokens, the same": ("seed", 131072),
    "a video of 4,096 tokens": ("video", 4096),
    "a video of 131,072 tokens": ("video", 131072),
    "32 rows of 4,096, images, videos, padding": ("batch", 4096),
}
_STEPS = {
    "GLM-4V, 64 of them with chunks of up to 512 tokens": ("step", 4096),
    "GLM-4V, all of them decoding": ("step-decode", 4096),
    "Qwen3-Omni, 64 of them with chunks of up to 512 tokens": ("step-omni", 4096),
    "Qwen3-Omni, all of them decoding": ("step-omni-decode", 4096),
}
_OMNI = {
    **{
        f"{family}, {size:,} tokens": (workload, size)
        for family, workload in (("Qwen3-Omni", "mixed-omni"), ("Qwen2.5-Omni", "mixed-omni2.5"))
        for size in (180, 900, 1000, 4000, 16384, 131072)
    },
    "Qwen3-Omni, 8 rows of up to 1,000": ("mixed-omni-batch", 1000),
    "Qwen2.5-Omni, 8 rows of up to 1,000": ("mixed-omni2.5-batch", 1000),
}
_OMNI_SOUND = {
    heading.replace(",", ", with sound,", 1): (f"{workload}-sound", size)
    for heading, (workload, size) in _OMNI.items()
}
_OWN = {
    heading: line
    for family, name in _OWN_RULES.items()
    for heading, line in {
        **{
            f"{family}, {size:,} tokens": (f"mixed-own-{name}", size)
            for size in (300, 1000, 4000, 16384, 131072)
        },
        f"{family}, 8 rows of up to 1,000": (f"mixed-own-batch-{name}", 1000),
    }.items()
}


def _families(provider: str, *families: str) -> Columns:
    """Return a column for each family."""
    return {f"`{family}`": (f"-{family}", provider) for family in families or FAMILIES}


def _providers(*upstreams: str, **ours: str) -> Columns:
    """Return a column for each provider: vecrope's by their headings, then upstreams."""
    named = {heading.replace("_", " "): ("", provider) for heading, provider in ours.items()}
    return {**named, **{UPSTREAMS[name]: ("", name) for name in upstreams}}


_BESIDE = _providers("transformers", "sglang", "vllm", vecrope="vecrope")
_OMNI_BESIDE = _providers("transformers", "sglang", "vllm", "sglang-omni", vecrope="vecrope")
_GPU_BESIDE = _providers(
    *("transformers", "sglang", "sglang-host", "sglang-omni"),
    checked="vecrope",
    unchecked="vecrope-unchecked",
)
_FORMS = _providers(
    *("transformers", "lmms-engine", "sglang", "sglang-host"),
    checked="vecrope",
    unchecked="vecrope-unchecked",
    compiled="vecrope-compiled",
    in_place="vecrope-runner-in-place",
)

TABLES = {
    "cpu": Table(
        "cpu", "pictures and clips of many sizes", _families("vecrope"), _MIXED, "transformers"
    ),
    "cpu-busy": Table(
        "cpu", "on busy cores", _families("vecrope"), _MIXED, "transformers", busy=True
    ),
    "cpu-patched": Table(
        "cpu", "patched", _families("vecrope-patched"), {**_PROMPTS, **_PADDED}, "transformers"
    ),
    "cpu-collate": Table(
        "cpu", "`collate`", _families("vecrope-collate"), {**_PADDED, **_PACKED}, "transformers"
    ),
    "cpu-batch-positions": Table(
        "cpu",
        "positions alone",
        _families("vecrope-batch-positions"),
        {**_PADDED, **_PACKED},
        "vecrope-collate",
    ),
    "cpu-sglang": Table(
        "cpu",
        "beside SGLang",
        _families("vecrope", "glm4v", "qwen2_5_vl", "qwen3_vl"),
        {**_PROMPTS, **_PADDED},
        "sglang",
    ),
    "cpu-vllm": Table(
        "cpu",
        "beside vLLM",
        _families("vecrope-placeholders", "glm4v", "qwen2_5_vl", "qwen3_vl"),
        _PROMPTS,
        "vllm",
    ),
    "cpu-lmms-engine": Table(
        "cpu",
        "beside lmms-engine",
        _families("vecrope", "qwen2_5_vl", "qwen3_vl"),
        {**_PROMPTS, **_PADDED},
        "lmms-engine",
    ),
    "cpu-uniform": Table(
        "cpu",
        "GLM-4V",
        _providers(
            "transformers",
            "sglang",
            "vllm",
            vecrope="vecrope",
            from_placeholders="vecrope-placeholders",
        ),
        _UNIFORM,
    ),
    "cpu-steps": Table(
        "cpu",
        "256 requests",
        {
            "`step`": ("", "vecrope"),
            "8 of 256 changed": ("", "vecrope-replace"),
            "joined": ("", "vecrope-concatenate"),
            "SGLang": ("", "sglang"),
            "dense": ("", "dense"),
        },
        _STEPS,
    ),
    "cpu-omni": Table("cpu", "", _OMNI_BESIDE, {**_OMNI, **_OMNI_SOUND}),
    "cpu-own": Table("cpu", "", _BESIDE, _OWN, least=2),
    **{
        f"gpu-{family}": Table(
            "gpu",
            f"`{family}`",
            {heading: (f"-{family}", provider) for heading, (_, provider) in _FORMS.items()},
            _ON_GPU,
        )
        for family in FAMILIES
    },
    "gpu-own": Table("gpu", "", _GPU_BESIDE, {**_OWN, **_OMNI, **_OMNI_SOUND}),
}
