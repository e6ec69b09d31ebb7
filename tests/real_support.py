"""Pictures, clips, a tokenizer, and what a video processor needs where torchvision is absent."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

# 5.20, the last release for Python 3.10, cannot make MiniCPM-V 4.7 clips of different sizes, and
# leaves the sound of these omni clips out of the ids.
needs_later_processors = pytest.mark.skipif(
    not hasattr(transformers.processing_utils, "OmniModalProcessorMixin"),
    reason="the processors of this transformers release cannot make these prompts",
)

# What MiniCPM-V 4.7's tokenizer is asked for by name.
MINICPM_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


class TorchOnly(BaseVideoProcessor):
    def convert_to_rgb(self, video):
        assert video.shape[1] == 3
        return video

    def resize(self, image, size, **_):
        frames = image.flatten(0, 1).float()
        sized = torch.nn.functional.interpolate(frames, (size.height, size.width), mode="bilinear")
        return sized.unflatten(0, image.shape[:2])

    def normalize(self, image, mean, std, **_):
        return (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def video_processor_class(model_type, name):
    """Return a video processor whose module imports torchvision's functions, mostly as types."""
    stubs = {}
    if not is_torchvision_available():
        stubs = {
            f"torchvision{name}": ModuleType(f"torchvision{name}")
            for name in (
                *("", ".transforms", ".transforms.functional"),
                *(".transforms.v2", ".transforms.v2.functional"),
            )
        }
        for path, stub in stubs.items():
            stub.__spec__ = ModuleSpec(path, None)
            stub.__path__ = []
            stub.functional = stub.pil_to_tensor = stub.to_pil_image = None
    with mock.patch.dict(sys.modules, stubs):
        module = importlib.import_module(
            f"transformers.models.{model_type}.video_processing_{model_type}"
        )
    return type(name, (getattr(module, name), TorchOnly), {})


def picture(height, width, centre=0.5):
    """Draw a disc on a slope of colours."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    disc = (x - centre) ** 2 + (y - 0.5) ** 2 < 0.1
    return (255 * np.stack((x, y, disc), axis=-1)).astype(np.uint8)


def clip(frames, height, width):
    """Move the disc from the left to the right."""
    return np.stack([picture(height, width, centre) for centre in np.linspace(0, 1, frames)])


def make_tokenizer(special_tokens, **named):
    """Train a tokenizer of bytes and a few words; `named` become its attributes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", *special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Describe the picture.", "Is this smaller?"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", extra_special_tokens=named
    )
