"""Modules of a model without weights."""

import torch
from tiny_models import tiny_config
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel


def new_module(**vision):
    config = tiny_config("qwen2_vl")
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    with torch.device("meta"):
        return Qwen2VLModel(config)
