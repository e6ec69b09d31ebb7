"""Runs requests in a real vLLM, with the plugin and without, and writes what it saw as JSON.

`python vllm_run.py MODEL OUT.json`, in an environment that has vLLM and vecrope. The engine runs in
this process. It has a cache of prefixes, steps of few tokens, so that chunks of prompts end inside
pictures, and too little memory for some requests at once, so that it preempts. Where
`VLLM_ENABLE_V1_MULTIPROCESSING` is 1 it runs in a process of its own, as by default, and all is
left to the plugin.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import numpy as np
import torch
from PIL import Image

from vecrope.integrations.vllm import models, plugin

SERVED = os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
NUM_DRAWN = 6
# Of the engine, in tokens: its memory holds the longest prompt and hardly more.
BLOCK, MAX_LEN, CHUNK = 32, 768, 128
HITS, PREEMPTIONS = "vllm:prefix_cache_hits", "vllm:num_preemptions"


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


class Chunks:
    """Counts the steps that end inside a picture of a prompt."""

    def __init__(self):
        from vllm.v1.core.sched.scheduler import Scheduler

        self.inside = 0
        update = Scheduler._update_after_schedule

        def count(scheduler, output):
            update(scheduler, output)
            for request_id in output.num_scheduled_tokens:
                request = scheduler.requests[request_id]
                for feature in request.mm_features:
                    start = feature.mm_position.offset
                    end = start + feature.mm_position.length
                    self.inside += start < request.num_computed_tokens < end

        Scheduler._update_after_schedule = count


def wrong(num_tokens, _):
    return torch.arange(num_tokens).repeat(3, 1), 0


def refused(num_tokens, _):
    raise ValueError(f"group 0 must lie between tokens 0 and {num_tokens}")


class Prompts:
    """Prompts of a family, always the same."""

    def __init__(self, model):
        glm = "glm" in model
        self.max_videos = 1 if glm else 3  # vLLM takes no more for GLM-4V
        self.picture = "<|begin_of_image|><|image|><|end_of_image|>"
        self.clip = "<|begin_of_video|><|video|><|end_of_video|>"
        if not glm:
            self.picture = "<|vision_start|><|image_pad|><|vision_end|>"
            self.clip = "<|vision_start|><|video_pad|><|vision_end|>"
        sizes = json.loads((Path(model) / "preprocessor_config.json").read_text())
        self.unit = sizes["patch_size"] * sizes["merge_size"]
        self.rng = np.random.default_rng(0)
        self.by_name = self.named()
        # The second turn of a conversation has one more picture.
        picture, other = self.whole_image(8, 6), self.whole_image(5, 4)
        start = "u" * 20 + "look @ now"
        self.turns = self.make(start, [picture]), self.make(start + " @ too", [picture, other])
        # While their answers grow, the memory becomes too small: six blocks each become seven.
        text = "g" * (6 * BLOCK - 4 - 2 - 20)
        self.growing = [self.make(f"@{text}", [self.whole_image(5, 4)]) for _ in range(4)]

    def whole_image(self, width, height):
        """Return an image of so many tokens a side."""
        return self.image(width * self.unit, height * self.unit)

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

    def named(self):
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
            if kind == 0 and len(videos) < self.max_videos:
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


def main(model, out):
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        enforce_eager=True,
        dtype="float32",
        max_model_len=MAX_LEN,
        max_num_seqs=4,
        max_num_batched_tokens=CHUNK,
        block_size=BLOCK,
        num_gpu_blocks_override=MAX_LEN // BLOCK + 2,
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": 32, "video": 4},
        mm_processor_cache_gb=0,
        seed=0,
        disable_log_stats=False,
        distributed_executor_backend=None if SERVED else "uni",
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1)

    def generate(prompts):
        answers = []
        for output in llm.generate(prompts, sampling, use_tqdm=False):
            (best,) = output.outputs
            values = [round(next(iter(each.values())).logprob, 5) for each in best.logprobs]
            answers.append([list(best.token_ids), values])
        return answers

    prompts = Prompts(model)
    seen = {"names": list(prompts.by_name)}
    if SERVED:
        seen["answers"] = generate(list(prompts.by_name.values()))
    else:
        seen["replaced"] = sorted(owner.__name__ for owner in plugin._originals)
        positions, chunks = Positions(), Chunks()
        for phase in phases(positions):
            chunks.inside, before = 0, metric(llm, PREEMPTIONS)
            seen[phase] = run_phase(llm, generate, prompts)
            seen[phase]["positions"], seen[phase]["number"] = positions.take()
            seen[phase]["preemptions"] = metric(llm, PREEMPTIONS) - before
            seen[phase] |= {"inside": chunks.inside, "refusals": plugin.refusals()}
    Path(out).write_text(json.dumps(seen))


def phases(positions):
    """Yield the name of each way in which positions are computed, while it is in place."""
    rule, real = plugin.has_groups, positions.answer
    plugin.has_groups = lambda *_, **__: True
    for name, answer in (("vecrope", real), ("wrong", wrong), ("refused", refused)):
        positions.answer = answer
        yield name
    positions.answer = real
    plugin.has_groups = rule
    yield "rule"
    plugin.unregister()
    yield "vLLM"
    plugin.register()


def run_phase(llm, generate, prompts):
    assert llm.reset_prefix_cache()
    seen = {"answers": [generate([prompt])[0] for prompt in prompts.by_name.values()]}
    assert llm.reset_prefix_cache()
    seen["batch"] = generate(list(prompts.by_name.values()))
    first, second = prompts.turns
    seen["turns"] = generate([first])
    before = metric(llm, HITS)
    seen["turns"] += generate([second])
    seen["cached"] = metric(llm, HITS) - before
    seen["preempted"] = generate(prompts.growing)
    return seen


def metric(llm, name):
    return next(each.value for each in llm.get_metrics() if each.name == name)


if __name__ == "__main__":
    main(*sys.argv[1:3])
