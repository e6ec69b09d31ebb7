"""Runs requests in a real SGLang, with vecrope and without, and writes what it saw as JSON.

`python sglang_run.py MODEL OUT.json`, in an environment that has SGLang and vecrope. The engine's
main process, which runs the multimodal processor, is this one.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")

import numpy as np
import torch
from PIL import Image

from vecrope.integrations import sglang as ours
from vecrope.integrations.sglang import ernie45, glm4v, installing, qwen


class Prompts:
    """Prompts of a family, always the same."""

    def __init__(self, model):
        self.picture = "<|vision_start|><|image_pad|><|vision_end|>"
        if "glm" in model:
            self.picture = "<|begin_of_image|><|image|><|end_of_image|>"
        self.rng = np.random.default_rng(0)

    def image(self, width, height):
        stream = io.BytesIO()
        pixels = self.rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

    def by_name(self):
        small, large = self.image(112, 84), self.image(224, 168)
        named = {
            "text": ("hello there", None),
            "one picture": ("look @ now", [small]),
            "two pictures": ("first @ then @ compare", [large, small]),
            "touching pictures": ("@@", [small, large]),
        }
        for number in range(6):
            text, images = "", []
            for _ in range(self.rng.integers(1, 6)):
                text += "w" * int(self.rng.integers(0, 12)) + "@"
                images.append(self.image(*map(int, self.rng.integers(40, 400, 2))))
            named[f"drawn {number}"] = text + "e", images
        return {
            name: (text.replace("@", self.picture), images)
            for name, (text, images) in named.items()
        }


def main(model, out):
    import sglang

    engine = sglang.Engine(
        model_path=model,
        device="cpu",
        disable_cuda_graph=True,
        context_length=4096,
        max_total_tokens=16384,
        mem_fraction_static=0.2,
        attention_backend="torch_native",
        disable_radix_cache=True,
        dtype="float32",
        log_level="info",
        random_seed=0,
        skip_server_warmup=True,
        disable_overlap_schedule=True,
    )
    # The plugin has installed it by now, if SGLang loads plugins.
    seen = {"by plugin": bool(installing._swapped)}
    processor = engine.tokenizer_manager.mm_processor
    given, process = [], processor.process_mm_data_async

    async def remember(*arguments, **options):
        result = await process(*arguments, **options)
        given.append(result)
        return result

    processor.process_mm_data_async = remember
    prompts = Prompts(model).by_name()
    seen["names"] = list(prompts)
    for phase in ("vecrope", "refused", "SGLang"):
        ours.uninstall()
        if phase != "SGLang":
            seen["replaced"] = ours.install().replaced
        if phase == "refused":
            refuse_all()
        rows = []
        for text, images in prompts.values():
            given.clear()
            answer = engine.generate(
                prompt=text,
                image_data=images,
                sampling_params={"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
                return_logprob=True,
            )
            tokens = [
                [token, round(value, 5)]
                for value, token, *_ in answer["meta_info"]["output_token_logprobs"]
            ]
            found = given[0] if given else None
            positions = getattr(found, "mrope_positions", None)
            if positions is not None:
                delta = torch.as_tensor(found.mrope_position_delta)
                positions = [positions.tolist(), delta.flatten().tolist(), str(positions.dtype)]
            rows.append([tokens, positions])
        seen[phase] = {"rows": rows, "refusals": ours.refusals()}
    Path(out).write_text(json.dumps(seen))
    engine.shutdown()


def refuse_all():
    """Let vecrope refuse every prompt with grids, as it does one that does not fit."""

    def refuse(*_, **__):
        raise ValueError("row 0: image 0 needs 4 tokens, got 2")

    for module in (ernie45, glm4v, qwen):
        module.rope_index_of_used = refuse


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
