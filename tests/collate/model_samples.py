"""The rows that the tiny models are called with, as samples of a data set."""

import torch
from tiny_models import IDS, LAYOUTS, inputs_of
from tiny_own_models import own_inputs_of

# Images and videos of each of the two rows.
_COUNTS = {
    "images": ([2, 1], [0, 0]),
    "clips": ([0, 0], [1, 1]),
    "both": ([2, 1], [1, 0]),
    "own rule": ([1, 1], [0, 1]),
    "sound": ([0, 2], [1, 0]),
}
_OWN_COUNTS = {"hunyuan_vl": ([2, 1], [0, 0]), "glm_image": ([2, 2], [0, 0])}
_CROPS = [3, 1]
SHARED = [(model_type, layout) for model_type, layouts in LAYOUTS.items() for layout in layouts]


def samples_of(model_type, layout):
    """Return two samples as processors give them, with labels."""
    own = layout in ("own rule", "sound")
    batch = own_inputs_of(model_type, layout) if own else inputs_of(model_type, layout)
    images, videos = _OWN_COUNTS.get(model_type, _COUNTS[layout])
    samples = [_tokens(batch, row) for row in range(2)]
    if model_type == "minicpmv4_7":
        _split_crops(batch, samples)
        return samples
    for name, pixels, counts in (
        ("image_grid_thw", "pixel_values", images),
        ("video_grid_thw", "pixel_values_videos", videos),
    ):
        if name not in batch:
            continue
        grids = batch[name].split(counts)
        rows = [grid.prod(1).tolist() for grid in grids]
        if model_type == "glm_image":  # the last grid is of a picture to be generated
            rows = [row[:-1] for row in rows]
        patches = batch[pixels].split([sum(row) for row in rows])
        for sample, grid, patch in zip(samples, grids, patches, strict=True):
            if len(grid):
                sample.update({name: grid, pixels: patch})
    seconds = {"second_per_grid_ts", "video_second_per_grid"} & batch.keys()
    for name in seconds:
        for sample, own_seconds in zip(samples, batch[name].split(videos), strict=True):
            if len(own_seconds):
                sample[name] = own_seconds
    for name in ("input_features", "feature_attention_mask"):
        if name in batch:  # all sounds are the first row's
            samples[0][name] = batch[name]
    if batch.get("use_audio_in_video"):
        samples[0]["use_audio_in_video"] = True
    return samples


def _tokens(batch, row):
    kept = batch["attention_mask"][row].bool()
    names = ("input_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
    sample = {name: batch[name][row][kept][None] for name in names if name in batch}
    markers = torch.tensor(list(IDS.values()))
    ids = sample["input_ids"]
    sample["labels"] = torch.where(torch.isin(ids, markers), -100, ids)
    return sample


def _split_crops(batch, samples):
    patch = batch["pixel_values"].shape[-2]
    sizes = batch["target_sizes"].split(_CROPS)
    widths = [patch * int(size.prod(1).sum()) for size in sizes]
    for sample, size, pixels in zip(
        samples, sizes, batch["pixel_values"].split(widths, -1), strict=True
    ):
        sample.update(target_sizes=size, pixel_values=pixels)
