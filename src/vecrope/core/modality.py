"""What each token is: text, image, video or masked."""

from __future__ import annotations

import torch
from torch import Tensor

from vecrope.core.stream import Stream
from vecrope.spec import MRopeSpec

TEXT, IMAGE, VIDEO, MASKED = 0, 1, 2, 3
# The number of open markers at the end of a row whose markers nobody has looked at.
UNKNOWN_MARKERS = -(2**31)


def token_codes(stream: Stream, spec: MRopeSpec) -> Tensor:
    """Return (N,) uint8 codes that change wherever the modality does.

    Where markers tell videos, their placeholders are coded `IMAGE`, too.
    """
    if stream.token_types is None:
        if spec.image_token_id is None:
            codes = torch.zeros_like(stream.input_ids, dtype=torch.uint8)
        else:
            codes = (stream.input_ids == spec.image_token_id).to(torch.uint8)
        if spec.video_token_id is not None:
            codes.add_(stream.input_ids == spec.video_token_id, alpha=VIDEO)
    else:
        codes = stream.token_types.to(torch.uint8)
    if stream.kept is None:
        return codes
    return torch.where(stream.kept, codes, MASKED)


def compact(
    flags: Tensor, capacity: int | None, index_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return the indices at which `flags` (N,) is set, and how many there are.

    Args:
        flags: (N,) bool.
        capacity: None for exactly as many indices as are set, which reads the values; otherwise
            the number of indices to return: the first ones, then N where there are fewer.
        index_dtype: of the indices.

    Returns:
        Ascending indices, (S,) or (capacity,); and with a capacity, which may be too small, the
        number of flags set, a 0-d tensor.
    """
    if capacity is None:
        return flags.nonzero().view(-1), None
    num_tokens = flags.shape[0]
    ranks = flags.cumsum(0, dtype=index_dtype)
    # One spare slot takes every write that is not a flag's, or is beyond the capacity.
    slots = torch.where(flags & (ranks <= capacity), ranks - 1, capacity)
    table = torch.full((capacity + 1,), num_tokens, dtype=index_dtype, device=flags.device)
    table[slots] = torch.arange(num_tokens, dtype=index_dtype, device=flags.device)
    return table[:capacity], ranks[-1]
