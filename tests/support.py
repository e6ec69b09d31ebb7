"""What several test files share: calls, comparisons, and ways to rearrange a prompt."""

import random
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import torch
from hypothesis import settings
from hypothesis import strategies as st

from vecrope import MRopeSpec, get_rope_index
from vecrope.testing import Prompt, conversations, token_soup

CONVENTIONS = ("sglang", "transformers")
# The tensors are small and test processes share the cores: more threads only cost time.
torch.set_num_threads(1)

LEAST = torch.iinfo(torch.int64).min

FITTING = {
    "conversations": conversations,
    "short conversations": partial(conversations, max_rows=1, max_segments=3),
    # With room for frames of several sizes on the fast path.
    "long conversations": partial(conversations, max_side=3, max_text=80),
    "touching conversations": partial(conversations, touching=True),
    "soup": token_soup,
    "touching soup with zeros": partial(token_soup, touching=True, zero_grids=True),
}
misfitting = partial(token_soup, fit=False, touching=True, zero_grids=True)


def at_most(number):
    """Return settings of so many examples, or of fewer where the profile has fewer."""
    return settings(max_examples=min(number, settings.default.max_examples))


@cache
def fitting(spec):
    """Draw any prompt that the reference accepts."""
    return st.one_of(*(strategy(spec) for strategy in FITTING.values()))


def spec_of(model_type, convention):
    return MRopeSpec.for_model(model_type, convention=convention)


def rope_index(prompt, function=get_rope_index, **changes):
    """Answer a prompt from its ids, with any of the arguments changed."""
    arguments = {**prompt.arguments(), "mm_token_type_ids": None, **changes}
    return function(arguments.pop("input_ids"), prompt.spec, **arguments)


def refusal(prompt, answer=rope_index, **changes):
    """Return the message with which a prompt is refused, or None."""
    try:
        answer(prompt, **changes)
    except ValueError as error:
        return str(error)
    return None


def assert_same(got, want):
    for ours, theirs in zip(got, want, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert torch.equal(ours.cpu(), theirs.cpu()), f"got {ours}\nexpected {theirs}"


def assert_no_answer(answer):
    position_ids, rope_deltas = answer
    assert torch.equal(position_ids, torch.full_like(position_ids, -1))
    assert torch.equal(rope_deltas, torch.full_like(rope_deltas, LEAST))


def grid_tensor(grids):
    return torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)


def grid_list(grid_thw):
    return [] if grid_thw is None else grid_thw.tolist()


def kept(prompt):
    """Return (B, T) bool: the unmasked tokens."""
    if prompt.attention_mask is None:
        return torch.ones_like(prompt.input_ids, dtype=torch.bool)
    return prompt.attention_mask.bool()


def enlarged(prompt, *, rows, tokens, grids):
    """Return the prompt with so many rows, tokens a row and grids: masked and zero ones added."""
    batch, seq_len = prompt.input_ids.shape
    mask = torch.zeros((rows, tokens), dtype=torch.int64)
    mask[:batch, :seq_len] = kept(prompt)
    filler = "t" * (tokens - seq_len)
    zeros = [(0, 0, 0)]
    images, videos = grid_list(prompt.image_grid_thw), grid_list(prompt.video_grid_thw)
    seconds = prompt.second_per_grid_ts
    if seconds is not None:
        seconds = torch.nn.functional.pad(torch.as_tensor(seconds), (0, grids - len(videos)))
    return Prompt.from_symbols(
        prompt.spec,
        [row + filler for row in prompt.symbols] + ["t" * tokens] * (rows - batch),
        mask=["".join(map(str, row)) for row in mask.tolist()],
        image_grid_thw=images + zeros * (grids - len(images)),
        video_grid_thw=videos + zeros * (grids - len(videos)),
        second_per_grid_ts=seconds,
    )


def roomy(prompt):
    """Enlarge every size to two or more: torch compiles sizes of 0 and 1 on their own."""
    batch, seq_len = prompt.input_ids.shape
    most = max(len(grid_list(prompt.image_grid_thw)), len(grid_list(prompt.video_grid_thw)))
    return enlarged(prompt, rows=batch + 1, tokens=seq_len + 1, grids=most + 2)


def choose_rows(prompt, rows):
    """Return a prompt of the chosen rows, each with the grids that it uses."""
    own = list(_grids_of_rows(prompt))
    mask = prompt.attention_mask
    seconds = prompt.second_per_grid_ts
    if seconds is not None:
        chosen = [seconds[index] for row in rows for index in own[row][2]]
        if torch.is_tensor(seconds):
            chosen = torch.tensor(chosen, dtype=seconds.dtype)
        seconds = chosen
    return replace(
        prompt,
        input_ids=prompt.input_ids[rows],
        attention_mask=None if mask is None else mask[rows],
        mm_token_type_ids=prompt.mm_token_type_ids[rows],
        image_grid_thw=grid_tensor([grid for row in rows for grid in own[row][0]]),
        video_grid_thw=grid_tensor([grid for row in rows for grid in own[row][1]]),
        second_per_grid_ts=seconds,
    )


def _grids_of_rows(prompt):
    """Yield each row's images, its videos, and the numbers of these in the batch.

    Separate frames are yielded as videos of one frame: such a video may span rows.
    """
    spec = prompt.spec
    merge = spec.spatial_merge_size
    images = (grid for grid in enumerate(grid_list(prompt.image_grid_thw)) if any(grid[1]))
    videos = (grid for grid in enumerate(grid_list(prompt.video_grid_thw)) if any(grid[1]))
    if spec.separate_frames:
        videos = ((at, [1, h, w]) for at, (t, h, w) in videos for _ in range(t))
    for types in prompt.mm_token_type_ids:
        own = [], [], []
        for kind, pending in enumerate((images, videos)):
            tokens = int((types == kind + 1).sum())
            while tokens:
                at, (t, h, w) = next(pending)
                own[kind].append([t, h, w])
                if kind:
                    own[2].append(at)
                    t //= spec.temporal_merge_size
                tokens -= t * (h // merge) * (w // merge)
        yield own


def random_traffic(spec, number):
    """Yield prompts of random B, T, and numbers of images and videos, none among them."""
    rng = random.Random(0)
    for _ in range(number):
        rows, images, videos = [], [], []
        for _ in range(rng.randint(1, 4)):
            row = "t" * rng.randint(0, 30)
            for _ in range(rng.choice((0, 0, 1, 2, 5))):
                h, w = rng.randint(1, 6), rng.randint(1, 6)
                frame = f"<{'I' * (h * w)}>t"
                if rng.random() < 0.5:
                    frames = rng.randint(1, 3)
                    videos.append([frames, 2 * h, 2 * w])
                    row += f"[{frame * frames}]"
                else:
                    images.append([1, 2 * h, 2 * w])
                    row += frame
            rows.append(row + "t" * rng.randint(1, 99))
        seq_len = max(map(len, rows))
        mask = [("1" * len(row)).ljust(seq_len, "0") for row in rows]
        yield Prompt.from_symbols(
            spec,
            [row.ljust(seq_len, "t") for row in rows],
            mask=mask if rng.random() < 0.5 or "0" in "".join(mask) else None,
            image_grid_thw=images or None,
            video_grid_thw=videos or None,
        )


@contextmanager
def no_synchronisation():
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def count_waits(call):
    """Return what a call returns, and how often it waits for the CUDA device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            answer = call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return answer, sum("synchronizing CUDA operation" in str(entry.message) for entry in caught)
