"""A model that trains on collated batches."""

from functools import partial

import torch
from torch.utils.data import DataLoader

import vecrope
from vecrope import collate
from vecrope.testing import Prompt

# A model that trains


def training_samples(config, number):
    """Return conversations about an image or a video, with pixels, as a processor makes them."""
    generator = torch.Generator().manual_seed(1)
    spec = vecrope.MRopeSpec.from_config(config, convention="transformers")
    size = 6 * config.vision_config.patch_size**2
    samples = []
    for index in range(number):
        name, row, grid = [
            ("image", "tt<IIIIII>ttt", (1, 4, 6)),
            ("video", "t<VVVV>tt", (2, 4, 2)),
            ("image", "ttt<II>t", (1, 2, 4)),
        ][index % 3]
        prompt = Prompt.from_symbols(spec, [row])
        ids = prompt.input_ids[0]
        text = torch.randint(5, 50, ids.shape, generator=generator)
        ids = torch.where(ids < 60, text, ids)
        patches = torch.randn((grid[0] * grid[1] * grid[2], size), generator=generator)
        samples.append(
            {
                "input_ids": ids,
                "labels": ids,
                "mm_token_type_ids": prompt.mm_token_type_ids[0],
                f"{name}_grid_thw": torch.tensor([grid]),
                "pixel_values" if name == "image" else "pixel_values_videos": patches,
            }
        )
    return samples, spec


def losses(model, batches):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_a_model_trains_as_on_its_own_positions(tiny_model):
    model = tiny_model()
    samples, spec = training_samples(model.config, 8)
    collate_fn = partial(collate, spec=spec, pad_token_id=0)
    batches = list(DataLoader(samples * 2, batch_size=4, collate_fn=collate_fn))
    bare = [
        {
            name: value
            for name, value in batch.items()
            if name not in ("position_ids", "rope_deltas")
        }
        for batch in batches
    ]
    ours, theirs = losses(tiny_model(), batches), losses(tiny_model(), bare)
    assert ours == theirs
    assert len(ours) == 4
    assert ours[-1] < ours[0]


def test_a_packed_batch_trains_as_a_padded_one(tiny_model):
    model = tiny_model()
    samples, spec = training_samples(model.config, 8)
    found = []
    for packed in (False, True):
        collate_fn = partial(collate, spec=spec, pad_token_id=0, packed=packed)
        loader = DataLoader(samples, batch_size=4, collate_fn=collate_fn)
        found.append(losses(tiny_model(), loader))
    torch.testing.assert_close(*map(torch.tensor, found), rtol=1e-4, atol=1e-4)
