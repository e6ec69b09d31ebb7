"""What a processor of transformers returns for a prompt is a sample: collated, they are its batch.

Each prompt goes through the processor alone. The batch that is collated of the answers equals what
the processor makes of all prompts at once, and is numbered as the model numbers that.
"""

import pytest
import torch
from oracles import transformers_function
from real_support import needs_later_processors
from support import assert_same

from tests.collate import own_processors
from tests.real_input import test_families as families
from tests.real_input import test_omni as omni
from vecrope import MRopeSpec, collate, get_rope_index

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


def assert_equal(got, want):
    for name, value in want.items():
        if isinstance(value, torch.Tensor):  # what is not has no place in a batch
            assert torch.equal(got[name], value), name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", families.LAYOUTS)
def test_samples_make_the_processors_batch(model_type, side):
    processor, config = families.make_processor(model_type, side)
    spec = MRopeSpec.from_config(config, convention="transformers")
    samples = [
        families.process(processor, [text], images, videos)
        for text, images, videos in families.prompts(model_type)
    ]
    want, _ = families.prepare(model_type, side)
    pad_token_id = processor.tokenizer.pad_token_id
    got = collate(samples, spec, pad_token_id=pad_token_id, padding_side=side)
    assert_equal(got, want)
    names = ("attention_mask", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    theirs = transformers_function(model_type, config)(
        want["input_ids"],
        mm_token_type_ids=want["mm_token_type_ids"],
        **{name: want[name] for name in names if name in want},
    )
    assert_equal({"positions": got["position_ids"]}, {"positions": theirs[0]})
    assert torch.equal(got["rope_deltas"], theirs[1])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(name, marks=needs_later_processors if name == "minicpmv4_7" else ())
        for name in own_processors.FAMILIES
    ],
)
def test_so_do_those_of_other_processors(model_type, side):
    process = own_processors.FAMILIES[model_type](side)
    samples = [process([prompt]) for prompt in process.prompts]
    want = process(process.prompts)
    spec = MRopeSpec.from_config(process.config, convention="transformers")
    pad_token_id = process.processor.tokenizer.pad_token_id
    batch = collate(samples, spec, pad_token_id=pad_token_id, padding_side=side)
    assert_equal(batch, want)
    assert want["attention_mask"].unique().tolist() == [0, 1]
    names = ("input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", *spec.arguments)
    given = {name: want[name] for name in names if name in want}
    if model_type in ("hunyuan_vl", "minicpmv4_7"):
        given["mm_token_type_ids"] = want["mm_token_type_ids"]
    theirs = get_rope_index(spec=spec, **given)
    if model_type == "hunyuan_vl":
        # Its fourth axis counts images, the model's through the batch, ours in each sample.
        for row, sample in enumerate(samples):
            names = ("input_ids", "image_grid_thw", "mm_token_type_ids")
            given = {name: sample[name] for name in names if name in sample}
            kept = want["attention_mask"][row].bool()
            theirs[0][3, row, kept] = get_rope_index(spec=spec, **given)[0][3, 0]
    assert_same((batch["position_ids"], batch["rope_deltas"]), theirs)


@needs_later_processors
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("model_type", omni.FAMILIES)
def test_silent_clips_stand_beside_those_with_sound(model_type, packed):
    scenes = [
        omni.Scene(
            [f"{omni.VIDEO}What is heard?"], videos=(omni.SHORT,), seconds=(2,), owners=(0,)
        ),
        omni.Scene(
            [f"{omni.VIDEO}Is {omni.IMAGE} it?"], images=(omni.SMALL,), videos=(omni.SHORT,)
        ),
        omni.Scene([f"{omni.AUDIO}What is said?"], seconds=(0.7,)),
        omni.Scene(["Hello."]),
    ]
    rate = omni.FAMILIES[model_type].rate
    config = omni.make_config(model_type, rate)
    spec = MRopeSpec.from_config(config, convention="transformers")
    samples, alone = [], []
    for scene in scenes:
        sample = omni.prepare(model_type, scene, 2)
        alone.append(omni.answers(model_type, omni.arguments_of(sample, scene), rate)[1])
        samples.append({**sample, "use_audio_in_video": scene.with_sound})
    batch = collate(samples, spec, pad_token_id=omni.TOKENIZER.pad_token_id, packed=packed)
    assert batch["input_features"].shape[0] == 2
    start = 0
    for row, (positions, _) in enumerate(alone):
        length = positions.shape[2]
        columns = slice(start, start + length) if packed else slice(0, length)
        got = batch["position_ids"][-3:, 0 if packed else row, columns]
        start += length
        assert torch.equal(got.double(), positions[:, 0].double())
    if not packed:
        silent = [{**samples[0], "use_audio_in_video": False}]
        with pytest.raises(ValueError, match=r"^sample 0, token .* needs use_audio_in_video=True"):
            collate(silent, spec, pad_token_id=0)


@needs_later_processors
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("owner", [0, 1], ids=["silent last", "silent first"])
def test_a_silent_clip_beside_one_with_sound_in_one_sample(owner, packed):
    """As transformers answers it, which it does without the flag while an image is to come."""
    model_type, clips = "qwen3_omni_moe", (omni.SHORT, omni.GLANCE)
    scene = omni.Scene(
        [f"{omni.VIDEO}What {omni.VIDEO} is heard?{omni.IMAGE}"],
        images=(omni.SMALL,),
        videos=clips,
        seconds=(1,),
        owners=(owner,),
    )
    sample = omni.prepare(model_type, scene, 2)
    config = omni.make_config(model_type, omni.FAMILIES[model_type].rate)
    arguments = {**omni.arguments_of(sample, scene), "use_audio_in_video": False}
    theirs, _ = omni.transformers_function(model_type, config)(**arguments)
    sample["use_audio_in_video"] = [owner == 0, owner == 1]
    spec = MRopeSpec.from_config(config, convention="transformers")
    batch = collate([sample, {"input_ids": [250, 251]}], spec, pad_token_id=0, packed=packed)
    length = theirs.shape[2]
    assert torch.equal(batch["position_ids"][-3:, 0, :length].double(), theirs[:, 0].double())


def test_sound_is_said_for_each_clip():
    spec = MRopeSpec.for_model("qwen2_5_omni", convention="transformers")
    clip = {"input_ids": [1], "video_grid_thw": [[1, 2, 2]] * 2}
    for value, error, message in (
        ([True], ValueError, "must be one for each of its 2 videos, got 1"),
        ("yes", TypeError, "must be a bool, or one for each of its videos, got 'yes'"),
    ):
        with pytest.raises(error, match=f"use_audio_in_video of sample 0 {message}"):
            collate([{**clip, "use_audio_in_video": value}], spec, pad_token_id=0)
