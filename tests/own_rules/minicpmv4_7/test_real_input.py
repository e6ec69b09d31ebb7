"""MiniCPM-V 4.7: pictures and clips through transformers' own MiniCPM-V 4.7 processor.

As in `test_glm4v.py`, two things are stand-ins because torchvision may be absent: the pixel
operations of the processor of clips, and a check that asks for a class exported with torchvision.
"""

import pytest
import torch
from real_support import MINICPM_TOKENS as TOKENS
from real_support import TorchOnly, clip, needs_later_processors, picture
from support import assert_same
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
    MiniCPMV4_6ImageProcessorPil,
)
from transformers.models.minicpmv4_6.video_processing_minicpmv4_6 import MiniCPMV4_6VideoProcessor
from transformers.models.minicpmv4_7.processing_minicpmv4_7 import MiniCPMV4_7Processor

from tests.own_rules.minicpmv4_7.calls import transformers_model
from vecrope import MRopeSpec, get_rope_index

# Said by NumPy 2 where transformers hands it tensors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

SMALL, WIDE, TALL = picture(40, 50), picture(300, 900), picture(700, 260)
LONG, SHORT = clip(11, 60, 90), clip(8, 300, 500)
FPS = 4


class _ClipProcessor(MiniCPMV4_6VideoProcessor, TorchOnly):
    pass


class _Processor(MiniCPMV4_7Processor):
    def check_argument_for_proper_class(self, argument_name, argument):
        pass


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", *TOKENS.values()],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(["Describe the picture."], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<|endoftext|>")
    for name, token in TOKENS.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def prepare(tokenizer, mode, *, padding_side):
    small = {"downsample_mode": mode, "scale_resolution": 224}
    processor = _Processor(
        MiniCPMV4_6ImageProcessorPil(**small), _ClipProcessor(**small), tokenizer
    )
    image, video = TOKENS["image_token"], TOKENS["video_token"]
    tokenizer.padding_side = padding_side
    return processor(
        text=[
            f"{image}\nDescribe the picture.",
            "Hello.",
            f"{image}{image}\nand {video}\n{image}",
            f"{video}{video}Which is longer?\n",
        ],
        images=[WIDE, SMALL, TALL, WIDE],
        videos=[LONG, SHORT, LONG],
        padding=True,
        return_tensors="pt",
        videos_kwargs={
            "video_metadata": [
                {"fps": FPS, "total_num_frames": len(frames), "duration": len(frames) / FPS}
                for frames in (LONG, SHORT, LONG)
            ]
        },
    )


@needs_later_processors
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_what_the_processor_makes_is_answered_as_by_the_model(tokenizer, mode, padding_side):
    inputs = prepare(tokenizer, mode, padding_side=padding_side)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    assert len(newline) == 1
    names = ("image_start", "image_end", "slice_start", "slice_end")
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    ids["newline_id"] = newline[0]
    config = {
        "model_type": "minicpmv4_7",
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "downsample_mode": mode,
        **ids,
    }
    spec = MRopeSpec.from_config(config, convention="transformers")
    names = ("input_ids", "attention_mask", "target_sizes", "target_sizes_videos")
    arguments = {name: inputs[name] for name in names}
    types = inputs["mm_token_type_ids"]
    # Padding, lines of slices, and frames of clips do occur.
    assert not arguments["attention_mask"].all()
    assert (arguments["input_ids"] == ids["slice_start_id"]).sum() > 8
    assert len(arguments["target_sizes_videos"]) > 6

    model = transformers_model(mode)
    before = model.config
    model.config = type(before)(downsample_mode=mode, **ids)
    try:
        theirs = model.get_rope_index(mm_token_type_ids=types, **arguments)
    finally:
        model.config = before
    assert theirs[1].min() < 0
    assert_same(get_rope_index(spec=spec, **arguments), theirs)
    assert_same(get_rope_index(spec=spec, mm_token_type_ids=types, **arguments), theirs)
    assert not torch.equal(theirs[0][1], theirs[0][0])
