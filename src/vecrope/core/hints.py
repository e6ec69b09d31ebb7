"""What is likely the matter where placeholders and grids do not fit, by their numbers alone."""

from __future__ import annotations

from vecrope.spec import MRopeSpec

_KINDS = ("image", "video")
_PATCH_SIZES = (14, 16)


def likely_mistake(
    which: int, found: int, expected: int, num_grids: int, spec: MRopeSpec, *, by_types: bool
) -> str:
    """Return, in parentheses and with a space before them, what to look at; "" if nothing shows.

    Args:
        which: 0 for images, 1 for videos.
        found: placeholders of that kind in the batch.
        expected: placeholders that the grids of that kind describe.
        num_grids: rows of these grids.
        spec: the family's rules.
        by_types: whether `mm_token_type_ids` tells placeholders apart.
    """
    kind = _KINDS[which]
    if found and not num_grids:
        return f" ({kind}_grid_thw was not given)"
    if not found and expected:
        if by_types:
            return f" (mm_token_type_ids holds no {1 + which})"
        if which and spec.video_token_id is None:
            return (
                f" (no image_token_id {spec.image_token_id} follows a video_start_token_id "
                f"{spec.video_start_token_id} in input_ids)"
            )
        name = f"{kind}_token_id"
        return f" ({name} {getattr(spec, name)} does not occur in input_ids)"
    for size in _PATCH_SIZES:
        if expected == found * size**2:
            return f" ({kind}_grid_thw seems to count pixels; it counts patches)"
    return ""
