"""Runs requests in a real vLLM, with the plugin and without, and writes what it saw as JSON.

`python vllm_run.py MODEL OUT.json [small]`, in an environment that has vLLM and vecrope. The engine
runs in this process. `small` gives it a cache of prefixes, steps of few tokens, so that a chunk of
a prompt ends inside a picture, and too little memory for all requests, so that it preempts some.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import numpy as np
import torch
from PIL import Image

from vecrope.integrations.vllm import features, models, plugin

NUM_DRAWN = 6
CHUNK = 48


class Positions:
    """The positions and deltas that the runner was given, request by request, and who gave them."""

    def __init__(self):
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        self.given, self.by_vecrope = [], 0
        init, real = GPUModelRunner._init_mrope_positions, models.positions_of_groups
        self.answer = real

        def remember(runner, state):
            init(runner, state)
            self.given.append([state.mrope_positions.tolist(), int(state.mrope_position_delta)])

        def count(*arguments):
            self.by_vecrope += 1
            return self.answer(*arguments)

        GPUModelRunner._init_mrope_positions = remember
        models.positions_of_groups = count

    def take(self):
        given, number = self.given, self.by_vecrope
        self.given, self.by_vecrope = [], 0
        return given, number


def wrong(num_tokens, _):
    return torch.arange(num_tokens).repeat(3, 1), 0


def refused(num_tokens, _):
    raise ValueError(f"group 0 must lie between tokens 0 and {num_tokens}")


class Prompts:
    """Prompts of a family, always the same."""

    def __init__(self, model):
        glm = "glm" in model
        self.picture = "<|begin_of_image|><|image|><|end_of_image|>"
        self.clip = "<|begin_of_video|><|video|><|end_of_video|>"
        if not glm:
            self.picture = "<|vision_start|><|image_pad|><|vision_end|>"
            self.clip = "<|vision_start|><|video_pad|><|vision_end|>"
        self.rng = np.random.default_rng(0)

    def image(self, width, height):
        pixels = self.rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def video(self, frames, width, height, fps=2.0):
        pixels = self.rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
        metadata = {"fps": fps, "duration": frames / fps, "total_num_frames": frames}
        metadata |= {"frames_indices": list(range(frames)), "video_backend": "opencv"}
        return pixels, metadata | {"do_sample_frames": False}

    def make(self, text, images=(), videos=()):
        text = text.replace("@", self.picture).replace("#", self.clip)
        media = {"image": list(images), "video": list(videos)}
        return {"prompt": text, "multi_modal_data": {k: v for k, v in media.items() if v}}

    def by_name(self):
        small, large = self.image(112, 84), self.image(224, 168)
        many = [self.image(60 + 4 * at, 120 - 2 * at) for at in range(24)]
        return {
            "text": self.make("hello there, world"),
            "one picture": self.make("look @ now", [small]),
            "two pictures": self.make("first @ then @ compare", [large, small]),
            "touching pictures": self.make("@@", [small, large]),
            "24 pictures": self.make("".join(f"{at}@" for at in range(24)), many),
            "clip": self.make("clip # end", videos=[self.video(8, 112, 84)]),
            "long clip": self.make("clip # end", videos=[self.video(44, 84, 84)]),
            "both": self.make("a @ b # c @ d", [small, large], [self.video(6, 84, 112)]),
        } | {f"drawn {at}": self.drawn() for at in range(NUM_DRAWN)}

    def drawn(self):
        text, images, videos = "", [], []
        for _ in range(self.rng.integers(1, 7)):
            kind = self.rng.integers(0, 4)
            if kind == 0 and len(videos) < 3:
                text += "#"
                frames, *sides = (int(self.rng.integers(low, high)) for low, high in _VIDEO)
                videos.append(self.video(frames, *sides, float(self.rng.choice(_FPS))))
            elif kind == 1:
                text += "w" * int(self.rng.integers(0, 20))
            else:
                text += "@"
                images.append(self.image(*map(int, self.rng.integers(30, 400, 2))))
        return self.make(text + "e", images, videos)


_VIDEO = ((1, 13), (30, 200), (30, 200))
_FPS = (0.5, 1, 2, 3, 7.5, 24)


def main(model, out, small):
    from vllm import LLM, SamplingParams

    options = {"max_num_batched_tokens": 4096, "enable_prefix_caching": False}
    if small:
        options = {"max_num_batched_tokens": CHUNK, "enable_prefix_caching": True}
        options |= {"num_gpu_blocks_override": 14, "block_size": 32, "enable_chunked_prefill": True}
    llm = LLM(
        model=model,
        enforce_eager=True,
        max_model_len=400 if small else 4096,
        dtype="float32",
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 32, "video": 4},
        mm_processor_cache_gb=0,
        seed=0,
        disable_log_stats=False,
        distributed_executor_backend="uni",
        **options,
    )
    positions = Positions()
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)

    def generate(prompts):
        answers = []
        for output in llm.generate(prompts, sampling, use_tqdm=False):
            (best,) = output.outputs
            values = [round(next(iter(each.values())).logprob, 5) for each in best.logprobs]
            answers.append([list(best.token_ids), values])
        return answers

    prompts = Prompts(model)
    run = run_small if small else run_plain
    seen = {"replaced": sorted(owner.__name__ for owner in plugin._originals)}
    seen |= run(llm, generate, positions, prompts)
    Path(out).write_text(json.dumps(seen))


def phases(positions):
    """Yield the name of each way in which positions are computed, while it is in place."""
    rule = features.MIN_GROUPS
    real = positions.answer
    features.MIN_GROUPS = 0
    for name, answer in (("vecrope", real), ("wrong", wrong), ("refused", refused)):
        positions.answer = answer
        yield name
    positions.answer = real
    features.MIN_GROUPS = rule
    yield "rule"
    plugin.unregister()
    yield "vLLM"
    plugin.register()


def run_plain(_, generate, positions, prompts):
    named = prompts.by_name()
    seen = {"names": list(named)}
    for phase in phases(positions):
        answers = [generate([prompt])[0] for prompt in named.values()]
        given, number = positions.take()
        batch = []
        if phase in ("vecrope", "vLLM"):
            batch = generate(list(named.values()))
            positions.take()
        seen[phase] = {"answers": answers, "batch": batch, "positions": given, "number": number}
        seen[phase]["refusals"] = plugin.refusals()
    return seen


def run_small(llm, generate, positions, prompts):
    picture, other = prompts.image(168, 224), prompts.image(112, 140)
    first = prompts.make("u" * 20 + "look @ now", [picture])
    second = prompts.make("u" * 20 + "look @ now, and then @ too", [picture, other])
    others = [prompts.make(f"{at}" * 60 + "@", [prompts.image(140, 168)]) for at in range(4)]
    seen = {}
    for phase in phases(positions):
        llm.reset_prefix_cache()
        answers = generate([first]) + generate([second])
        cached = metric(llm, "vllm:prefix_cache_hits")
        answers += generate(others)
        given, number = positions.take()
        seen[phase] = {"answers": answers, "positions": given, "number": number}
        seen[phase] |= {"preemptions": metric(llm, "vllm:num_preemptions"), "cached": cached}
        seen[phase]["refusals"] = plugin.refusals()
    return seen


def metric(llm, name):
    return next(each.value for each in llm.get_metrics() if each.name == name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] == ["small"])
