"""Real input: pictures, clips, audio and clips with sound through the omni families' processors.

The processors are transformers', and so are the functions of the thinkers, of which nothing but
their positions is asked. As in `test_glm4v.py`, a few pixel operations stand in for
torchvision's. The sound of a clip is given as samples, so that nothing is decoded.
"""

from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np
import pytest
import torch
from omni_support import transformers_function
from real_support import clip, make_tokenizer, picture, video_processor_class
from support import assert_same
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vecrope import MRopeSpec, get_rope_index

# Said by NumPy 2 where transformers turns rows of a tensor into arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@dataclass(frozen=True)
class Family:
    """A family's classes, the size of its patches, and its processor's positions a second."""

    processor: type
    config: type
    patch_size: int
    rate: int


# The processor of Qwen3-Omni lays out with 13.0 where its configuration class has 25: the
# configuration is given 13 here, which alone fits. It must be an int, which 13.0 is not.
FAMILIES = {
    "qwen2_5_omni": Family(Qwen2_5OmniProcessor, Qwen2_5OmniThinkerConfig, 14, 25),
    "qwen3_omni_moe": Family(Qwen3OmniMoeProcessor, Qwen3OmniMoeThinkerConfig, 16, 13),
}
each_family = pytest.mark.parametrize("model_type", FAMILIES)
each_side = pytest.mark.parametrize("side", ["left", "right"])

TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "audio_token": "<|audio_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
SYMBOLS = dict(zip(TOKENS, "IVA<>()", strict=True))
TOKENIZER = make_tokenizer(dict.fromkeys(TOKENS.values()), **TOKENS)
IDS = {name: TOKENIZER.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
AUDIO = "<|audio_start|><|audio_pad|><|audio_end|>"


def tone(seconds):
    return np.sin(np.arange(int(16000 * seconds)) / 10).astype(np.float32)


WIDE, TALL, SMALL = picture(100, 150), picture(190, 70), picture(64, 64)
# Of 5, of 2 and of half a second.
RECORDED = 4
LONG, SHORT, GLANCE = clip(20, 64, 96), clip(8, 96, 64), clip(2, 64, 120)


@dataclass(frozen=True)
class Scene:
    """The rows of a batch and their media."""

    text: list
    images: tuple = ()
    videos: tuple = ()
    seconds: tuple = ()  # of each audio
    owners: tuple | None = None  # the video that each audio is the sound of, or None

    @property
    def with_sound(self):
        return self.owners is not None


SCENES = {
    "images": Scene(
        [f"{IMAGE}Describe the picture.", "Hello.", f"Is this {IMAGE} smaller? {IMAGE}"],
        images=(WIDE, TALL, SMALL),
    ),
    "audio": Scene(
        [f"{AUDIO}What is said?", "Hello.", f"Is {AUDIO} louder? {AUDIO}"], seconds=(2, 0.1, 3.21)
    ),
    "clips": Scene(
        [f"{VIDEO}Is {VIDEO} longer?", "Hello.", f"What happens? {VIDEO}"],
        videos=(LONG, SHORT, SHORT),
    ),
    "images, clips and audio": Scene(
        [f"{AUDIO}Is it {VIDEO} or {IMAGE}?", f"{VIDEO}{IMAGE}What is said? {AUDIO}", "Hello."],
        images=(WIDE, TALL),
        videos=(LONG, SHORT),
        seconds=(1, 0.5),
    ),
    # The sound of the first clip is longer than the clip, that of the others is shorter; that of
    # the last ends before the positions of its only frame do.
    "clips with sound": Scene(
        [f"{VIDEO}What is heard?", "Hello.", f"Is {VIDEO} longer? {VIDEO}{VIDEO}"],
        videos=(LONG, SHORT, LONG, GLANCE),
        seconds=(5.7, 0.5, 4, 0.1),
        owners=(0, 1, 2, 3),
    ),
    "images, audio and clips with sound": Scene(
        [f"{VIDEO}{AUDIO}What is heard?", f"{AUDIO}Is it {VIDEO} or {IMAGE}?", "Hello."],
        images=(SMALL,),
        videos=(LONG, SHORT),
        seconds=(4.5, 2, 1, 1.5),
        owners=(0, None, None, 1),
    ),
}
# Frames a second, and the temporal patches of each clip.
FRAMES = {2: (5, 2, 1), 3: (7, 3, 1), 4: (10, 4, 1)}
CASES = [
    (name, frame_rate)
    for name, scene in SCENES.items()
    for frame_rate in (FRAMES if scene.videos else (None,))
]
each_case = pytest.mark.parametrize(("scene", "frame_rate"), CASES)


@cache
def make_processor(model_type):
    family = FAMILIES[model_type]
    processor_class = type(
        family.processor.__name__,
        (family.processor,),
        {"check_argument_for_proper_class": lambda *_: None},
    )
    video_processor = video_processor_class("qwen2_vl", "Qwen2VLVideoProcessor")
    return processor_class(
        Qwen2VLImageProcessorPil(patch_size=family.patch_size),
        video_processor(patch_size=family.patch_size, cap_pixels_per_frame=False),
        WhisperFeatureExtractor(),
        TOKENIZER,
    )


def prepare(model_type, scene, frame_rate, side="left", **options):
    videos = {}
    if scene.videos:
        videos = {
            "videos": list(scene.videos),
            "video_metadata": [
                {
                    "fps": RECORDED,
                    "total_num_frames": len(video),
                    "duration": len(video) / RECORDED,
                }
                for video in scene.videos
            ],
            "videos_kwargs": {
                "fps": frame_rate,
                "do_sample_frames": True,
                "size": {"shortest_edge": 64 * 64, "longest_edge": 128 * 128},
            },
        }
    if scene.with_sound:
        options["load_audio_from_video"] = True
        options["audio_from_video_indices"] = list(scene.owners)
    return make_processor(model_type)(
        text=scene.text,
        images=list(scene.images) or None,
        audio=[tone(seconds) for seconds in scene.seconds] or None,
        padding=True,
        padding_side=side,
        return_tensors="pt",
        **videos,
        **options,
    )


def make_config(model_type, rate, **fields):
    return FAMILIES[model_type].config(
        image_token_id=IDS["image_token"],
        video_token_id=IDS["video_token"],
        audio_token_id=IDS["audio_token"],
        audio_start_token_id=IDS["audio_bos_token"],
        vision_start_token_id=IDS["vision_bos_token"],
        position_id_per_seconds=rate,
        **fields,
    )


def arguments_of(batch, scene):
    """Return what the models hand to their function of a processor's batch."""
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw")
    arguments = {name: batch[name] for name in names if name in batch}
    if scene.seconds:
        arguments["audio_seqlens"] = batch["feature_attention_mask"].sum(-1)
    if scene.videos:
        arguments["second_per_grids"] = batch["video_second_per_grid"]
    return {**arguments, "use_audio_in_video": scene.with_sound}


def symbols_of(batch):
    """Return the runs of equal tokens in each row, text as `t`, without padding."""
    names = {token_id: SYMBOLS[name] for name, token_id in IDS.items()}
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    lines = ["".join(names.get(token, "t") for token in ids[keep].tolist()) for ids, keep in rows]
    return ["".join(symbol for symbol, _ in groupby(line)) for line in lines]


def answers(model_type, arguments, rate, **fields):
    """Return our positions and deltas, those of the model, and the spec."""
    config = make_config(model_type, rate, **fields)
    spec = MRopeSpec.from_config(config, convention="transformers")
    assert spec.tokens_per_second == rate
    theirs = transformers_function(model_type, config)(**arguments)
    return get_rope_index(spec=spec, **arguments), theirs, spec


# The runs of equal tokens in each row. Qwen2.5-Omni hears two seconds at a time, at any frame rate.
SILENT = {
    "images": ["<I>t", "t", "t<I>t<I>"],
    "audio": ["(A)t", "t", "t(A)t(A)"],
    "clips": ["<V>t<V>t", "t", "t<V>"],
    "images, clips and audio": ["(A)t<V>t<I>t", "<V><I>t(A)", "t"],
}
TURNS = {
    ("qwen2_5_omni", 2): ("VAVAVA", "VA", "VAVAV", "VAVAVA", "VA"),
    ("qwen2_5_omni", 3): ("VAVAVA", "VA", "VAVAV", "VAVAVA", "VA"),
    ("qwen2_5_omni", 4): ("VAVAVA", "VA", "VAVAV", "VAVAVA", "VA"),
    ("qwen3_omni_moe", 2): ("VA" * 5, "VAV", "VA" * 4 + "V", "VA" * 5, "VAVA"),
    ("qwen3_omni_moe", 3): ("VA" * 7, "VAV", "VA" * 6 + "V", "VA" * 7, "VAVAVA"),
    ("qwen3_omni_moe", 4): ("VA" * 10, "VAV", "VA" * 8 + "V", "VA" * 9 + "V", "VAVAVAV"),
}
AUDIO_TOKENS = {
    ("qwen2_5_omni", "audio"): [50, 0, 2 + 80],
    ("qwen3_omni_moe", "audio"): [26, 0, 2 + 42],
    ("qwen2_5_omni", "images, clips and audio"): [25, 12, 0],
    ("qwen3_omni_moe", "images, clips and audio"): [13, 7, 0],
    ("qwen2_5_omni", "clips with sound"): [142, 0, 12 + 100 + 2],
    ("qwen3_omni_moe", "clips with sound"): [74, 0, 7 + 52 + 2],
    ("qwen2_5_omni", "images, audio and clips with sound"): [112 + 50, 25 + 37, 0],
    ("qwen3_omni_moe", "images, audio and clips with sound"): [59 + 26, 13 + 20, 0],
}


def expected_symbols(model_type, scene, frame_rate):
    if scene in SILENT:
        return SILENT[scene]
    turns = [f"<({runs})>" for runs in TURNS[model_type, frame_rate]]
    if scene == "clips with sound":
        return [f"{turns[0]}t", "t", f"t{turns[1]}t{turns[2]}<(VA)>"]
    return [f"{turns[3]}(A)t", f"(A)t{turns[4]}t<I>t", "t"]


@each_family
@each_case
def test_the_processor_lays_out_what_it_is_given(model_type, scene, frame_rate):
    name, scene = scene, SCENES[scene]
    batch = prepare(model_type, scene, frame_rate)
    assert symbols_of(batch) == expected_symbols(model_type, name, frame_rate)
    audio = (batch["input_ids"] == IDS["audio_token"]).sum(1)
    assert audio.tolist() == AUDIO_TOKENS.get((model_type, name), [0, 0, 0])

    arguments = arguments_of(batch, scene)
    assert ("image_grid_thw" in arguments) == bool(scene.images)
    if scene.images:
        assert arguments["image_grid_thw"][:, 0].tolist() == [1] * len(scene.images)
        assert arguments["image_grid_thw"][:, 1:].min() >= 4
    if scene.videos:
        long, short, glance = FRAMES[frame_rate]
        grids = {len(LONG): [long, 4, 6], len(SHORT): [short, 6, 4], len(GLANCE): [glance, 4, 8]}
        grids = [grids[len(video)] for video in scene.videos]
        assert arguments["video_grid_thw"].tolist() == grids
        seconds = arguments["second_per_grids"]
        assert torch.equal(seconds, torch.full((len(grids),), 2 / frame_rate))
    if scene.seconds:
        mel_frames = [round(100 * seconds) for seconds in scene.seconds]
        assert arguments["audio_seqlens"].tolist() == mel_frames


def fits(batch, position_ids):
    """Say whether the audio tokens stand where the model has audio: with one position on all axes.

    Most tokens of a frame have several.
    """
    uneven = (position_ids != position_ids[:1]).any(0)
    audio = batch["input_ids"] == IDS["audio_token"]
    return not bool(uneven[audio].any())


@each_family
@each_case
@each_side
def test_positions_equal_the_models_own(model_type, scene, frame_rate, side):
    scene = SCENES[scene]
    batch = prepare(model_type, scene, frame_rate, side)
    arguments = arguments_of(batch, scene)
    ours, theirs, spec = answers(model_type, arguments, FAMILIES[model_type].rate)
    assert_same(ours, theirs)
    assert fits(batch, theirs[0])
    assert bool((theirs[0] != theirs[0][:1]).any()) == bool(scene.images or scene.videos)

    keep = batch["attention_mask"].bool()
    assert 0 < keep.sum() < keep.numel()
    packed = {**arguments, "input_ids": arguments["input_ids"][keep], "attention_mask": None}
    packed["cu_seqlens"] = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0))
    assert_same(get_rope_index(spec=spec, **packed)[:1], [theirs[0][:, keep]])


@each_family
@pytest.mark.parametrize("frame_rate", [2, 3])
@pytest.mark.parametrize(
    ("told", "configured"), [(10, 10), (25, 25), (13.0, 25)], ids=["10", "25", "13.0 and 25"]
)
def test_the_model_counts_at_its_own_rate(model_type, frame_rate, told, configured):
    """The last pair is what the processor and the configuration of Qwen3-Omni have by default.

    The order of the tokens is then not that of their positions, which are the model's all the same.
    """
    scene = SCENES["images, audio and clips with sound"]
    batch = prepare(model_type, scene, frame_rate, position_id_per_seconds=told)
    ours, theirs, _ = answers(model_type, arguments_of(batch, scene), configured)
    assert_same(ours, theirs)
    assert fits(batch, theirs[0]) == (told == configured)


@pytest.mark.parametrize(("frame_rate", "turns"), [(4, 5), (3, 5), (2, 5), (1, 3)])
def test_chunks_of_other_lengths(frame_rate, turns):
    """At one frame a second, two frames are two chunks apart: the second is cut in two."""
    scene = SCENES["clips with sound"]
    batch = prepare("qwen2_5_omni", scene, frame_rate, seconds_per_chunk=1.0)
    assert symbols_of(batch)[0] == f"<({'VA' * turns})>t"
    ours, theirs, _ = answers("qwen2_5_omni", arguments_of(batch, scene), 25, seconds_per_chunk=1)
    assert_same(ours, theirs)
    assert fits(batch, theirs[0])


@each_family
@pytest.mark.parametrize("heard", [0, 1], ids=["silent last", "silent first"])
def test_a_silent_clip_beside_one_with_sound_is_refused(model_type, heard):
    """The processor lays them out; a model raises, or numbers the second of them as text."""
    text = [f"{VIDEO}What {VIDEO} is heard?"]
    scene = Scene(text, videos=(LONG, SHORT), seconds=(2,), owners=(heard,))
    batch = prepare(model_type, scene, 2)
    (row,) = symbols_of(batch)
    assert row.count("<V>") == row.count("<(V") == 1
    arguments = arguments_of(batch, scene)
    config = make_config(model_type, FAMILIES[model_type].rate)
    function = transformers_function(model_type, config)
    if model_type == "qwen2_5_omni" and heard == 1:
        with pytest.raises(RuntimeError, match="inconsistent with step sign"):
            function(**arguments)
    else:
        position_ids, _ = function(**arguments)
        second = (batch["input_ids"] == IDS["video_token"])[0].nonzero()[-12:, 0]
        assert torch.equal(position_ids[:, 0, second], position_ids[:1, 0, second].expand(3, -1))
    spec = MRopeSpec.from_config(config, convention="transformers")
    with pytest.raises(ValueError, match="a video without sound must not stand in a batch with"):
        get_rope_index(spec=spec, **arguments)
