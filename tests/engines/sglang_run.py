"""Runs requests in a real SGLang, with vecrope and without, and writes what it saw as JSON.

`python sglang_run.py MODEL OUT.json`, in an environment that has SGLang and vecrope. The engine's
main process, which runs the multimodal processor, is this one. Chunks of prompts end inside
pictures, prefixes are cached, and of several requests that run at once some are retracted.
"""

import base64
import io
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("SGLANG_TEST_RETRACT", "1")

import cv2
import numpy as np
import torch
from PIL import Image

from vecrope.integrations import sglang as ours
from vecrope.integrations.sglang import ernie45, glm4v, installing, qwen

CHUNK = 128


class Prompts:
    """Prompts of a family, always the same: a text, its images and its videos."""

    def __init__(self, model, folder):
        self.picture = "<|vision_start|><|image_pad|><|vision_end|>"
        self.clip = "<|vision_start|><|video_pad|><|vision_end|>"
        if "glm" in model:
            self.picture = "<|begin_of_image|><|image|><|end_of_image|>"
            self.clip = "<|begin_of_video|><|video|><|end_of_video|>"
        self.folder = folder
        self.rng = np.random.default_rng(0)
        picture, other = self.image(168, 224), self.image(112, 140)
        start = "u" * 20 + "look @ now"
        # The second turn of a conversation has one more picture.
        self.turns = self.make(start, [picture]), self.make(start + " @ too", [picture, other])
        self.by_name = self.named()

    def image(self, width, height):
        stream = io.BytesIO()
        pixels = self.rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream, "PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

    def video(self, frames, width, height):
        path = str(self.folder / f"{frames}x{width}x{height}.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 2.0, (width, height))
        for _ in range(frames):
            writer.write(self.rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        writer.release()
        return path

    def make(self, text, images=(), videos=()):
        text = text.replace("@", self.picture).replace("#", self.clip)
        return text, list(images), list(videos)

    def named(self):
        small, large = self.image(112, 84), self.image(224, 168)
        many = [self.image(60 + 4 * at, 120 - 2 * at) for at in range(24)]
        named = {
            "text": self.make("hello there"),
            "one picture": self.make("look @ now", [small]),
            "two pictures": self.make("first @ then @ compare", [large, small]),
            "touching pictures": self.make("@@", [small, large]),
            "24 pictures": self.make("".join(f"{at}@" for at in range(24)), many),
            "clip": self.make("clip # end", videos=[self.video(8, 112, 84)]),
            "both": self.make("a @ b # c", [small], [self.video(6, 84, 112)]),
        }
        for number in range(6):
            text, images = "", []
            for _ in range(self.rng.integers(1, 6)):
                text += "w" * int(self.rng.integers(0, 12)) + "@"
                images.append(self.image(*map(int, self.rng.integers(40, 400, 2))))
            named[f"drawn {number}"] = self.make(text + "e", images)
        return named


class Engine:
    """An engine, and what its processor has given to its scheduler."""

    def __init__(self, model):
        import sglang

        self.engine = sglang.Engine(
            model_path=model,
            device="cpu",
            disable_cuda_graph=True,
            context_length=4096,
            max_total_tokens=16384,
            mem_fraction_static=0.2,
            chunked_prefill_size=CHUNK,
            attention_backend="torch_native",
            dtype="float32",
            log_level="info",
            random_seed=0,
            skip_server_warmup=True,
            disable_overlap_schedule=True,
        )
        self.given, self.phase = [], None
        self.processor = self.engine.tokenizer_manager.mm_processor
        process = self.processor.process_mm_data_async

        async def remember(*arguments, **options):
            result = await process(*arguments, **options)
            if self.phase == "wrong":
                positions = torch.arange(result.mrope_positions.shape[1]).repeat(3, 1)
                result.mrope_positions = positions
                result.mrope_position_delta = torch.zeros((1, 1), dtype=torch.int64)
            if self.phase == "missing":
                result.mrope_positions = result.mrope_position_delta = None
            self.given.append(result)
            return result

        self.processor.process_mm_data_async = remember

    def answer(self, prompts):
        """Return tokens and log-probabilities of each prompt, and how many tokens were cached."""
        texts, images, videos = zip(*prompts, strict=True)
        outputs = self.engine.generate(
            prompt=list(texts),
            image_data=list(images) if any(images) else None,
            video_data=list(videos) if any(videos) else None,
            sampling_params={"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
            return_logprob=True,
        )
        answers = [
            [
                [token, round(value, 5)]
                for value, token, *_ in output["meta_info"]["output_token_logprobs"]
            ]
            for output in outputs
        ]
        return answers, sum(output["meta_info"]["cached_tokens"] for output in outputs)

    def forget_positions(self):
        """Let the processor forget the positions of prompts that it has seen, whoever made them."""
        cached = getattr(type(self.processor), "_cached_image_prompt_template", None)
        if cached is not None:
            cached.cache_clear()

    def flush(self):
        """Empty the cache of prefixes, which SGLang refuses while a request is not yet finished."""
        while not self.engine.flush_cache().success:
            time.sleep(0.1)

    def take(self):
        """Return the positions, delta and type of each request."""
        taken = []
        for result in self.given:
            positions = result.mrope_positions
            if positions is not None:
                delta = torch.as_tensor(result.mrope_position_delta)
                positions = [positions.tolist(), delta.flatten().tolist(), str(positions.dtype)]
            taken.append(positions)
        self.given.clear()
        return taken

    def number_stray(self):
        """Return what the processor answers for a request with a placeholder beyond its images."""
        result = self.given[0]
        ids = [*result.input_ids, result.im_token_id]
        positions, delta = self.processor.compute_mrope_positions(ids, result.mm_items)
        return [positions.tolist(), delta.tolist()]

    def ends_inside(self):
        """Return in how many pictures a chunk ends, where no prefix is cached."""
        offsets = [
            (start, end, len(result.input_ids))
            for result in self.given
            for item in result.mm_items
            for start, end in item.offsets
        ]
        return sum(
            any(start < chunk <= end for chunk in range(CHUNK, num_tokens, CHUNK))
            for start, end, num_tokens in offsets
        )


def main(model, out):
    engine = Engine(model)
    # The plugin has installed it by now, if SGLang loads plugins.
    seen = {"by plugin": bool(installing._swapped)}
    prompts = Prompts(model, Path(out).parent)
    seen["names"] = list(prompts.by_name)
    phases = ("vecrope", "missing", "wrong", "refused", "SGLang")
    for phase in phases if seen["by plugin"] else ("missing", "SGLang"):
        ours.uninstall()
        if phase != "SGLang" and seen["by plugin"]:
            seen["replaced"] = ours.install().replaced
        if phase == "refused":
            refuse_all()
        engine.phase = phase
        engine.forget_positions()
        engine.flush()
        named = list(prompts.by_name.values())
        seen[phase] = {"answers": [engine.answer([prompt])[0][0] for prompt in named]}
        seen[phase]["inside"] = engine.ends_inside()
        if phase in ("vecrope", "SGLang") and "glm" not in model:  # SGLang refuses that, too
            seen[phase]["stray"] = engine.number_stray()
        engine.flush()
        seen[phase]["batch"] = engine.answer(named)[0]
        seen[phase]["positions"] = sorted(engine.take(), key=str)
        first, second = prompts.turns
        turns = [engine.answer([turn]) for turn in (first, second)]
        seen[phase]["turns"] = [answers for answers, _ in turns]
        seen[phase]["cached"] = turns[1][1]
        seen[phase]["positions of turns"] = engine.take()
        seen[phase]["refusals"] = ours.refusals()
    Path(out).write_text(json.dumps(seen))
    engine.engine.shutdown()


def refuse_all():
    """Let vecrope refuse every prompt with grids, as it does one that does not fit."""

    def refuse(*_, **__):
        raise ValueError("row 0: image 0 needs 4 tokens, got 2")

    for module in (ernie45, glm4v, qwen):
        module.rope_index_of_used = refuse


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
