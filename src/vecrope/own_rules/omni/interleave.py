"""The interleave of a video with its sound, as a merge by position."""

from __future__ import annotations

from torch import Tensor

from vecrope.families.rules import OmniRule
from vecrope.spec import MRopeSpec


def audio_before(positions: Tensor, blocks: Tensor) -> Tensor:
    """Return how many audio tokens of a long enough audio come before a frame: those below it.

    Args:
        positions: of the frame in time; int64, or float32.
        blocks: the position that the audio counts up from, of the same dtype.
    """
    if not positions.is_floating_point():
        return positions - blocks
    # Rounding moves an audio token by less than one, so that one on either side decides.
    near = (positions.double() - blocks.double()).ceil().float() - 1
    below = [(near + step + blocks < positions).long() for step in (0, 1)]
    return (near.long() + below[0] + below[1]).clamp(min=0)


def chunk_length(spec: MRopeSpec, rule: OmniRule) -> int:
    """Return the positions of a chunk."""
    assert spec.tokens_per_second is not None
    assert rule.seconds_per_chunk is not None
    return int(spec.tokens_per_second * rule.seconds_per_chunk)
