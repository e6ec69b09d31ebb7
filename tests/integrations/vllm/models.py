"""Names of vLLM's models, and objects that describe features as they do."""

from types import SimpleNamespace

from omni_support import configuration
from oracles import families_of

from vecrope.integrations.vllm import models

ALL = [(module, name) for module, classes in models.CLASSES.items() for name in classes]

GROUP = [(1, 1, 1, 2)]
ANSWER = [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]


def answer(owner, *arguments):
    position_ids, delta = owner().get_mrope_input_positions(*arguments)
    return position_ids.tolist(), delta


# vLLM itself


FAMILIES = [
    *(name for name in families_of("vllm") if name not in ("qwen3_asr", "minicpmv4_6")),
    "bailing_moe_v3_vl",
]


def omni_model(spec):
    """Return a stand-in that describes features as vLLM's models do."""
    config = configuration(spec)
    merge, rate = spec.spatial_merge_size, spec.tokens_per_second

    def iter_mm_features(features):
        for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
            data = {key: field.data for key, field in feature.data.items()}
            if feature.modality == "audio":
                yield feature.mm_position.offset, "audio", {}
                continue
            frames, height, width = data[f"{feature.modality}_grid_thw"].tolist()
            default = 1.0 if spec.default_seconds is None else spec.default_seconds
            seconds = float(data.get("second_per_grid_ts", default))
            yield (
                feature.mm_position.offset,
                feature.modality,
                {
                    "grid_t": frames,
                    "grid_h": height // merge,
                    "grid_w": width // merge,
                    "t_factor": rate * (seconds if feature.modality == "video" else 1),
                    "use_audio_in_video": bool(data.get("use_audio_in_video")),
                },
            )

    return SimpleNamespace(config=config, iter_mm_features=iter_mm_features)


def has_other_audio(row):
    """Say whether there are videos with sound, and audio on its own or other videos as well."""
    (symbols,) = row.symbols
    sounds = symbols.count("<(")
    return sounds and (symbols.count("(") > sounds or "<V" in symbols)
