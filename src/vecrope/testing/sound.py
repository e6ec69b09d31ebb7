"""Videos with their sound, as the processors of omni families interleave them."""

from __future__ import annotations

from collections.abc import Sequence

from vecrope.spec import MRopeSpec
from vecrope.testing.prompt import Prompt
from vecrope.testing.reference.omni import audio_tokens
from vecrope.testing.rules import omni_reference

__all__ = ["sound_block", "video_with_sound"]


def sound_block(spec: MRopeSpec, grid: Sequence[int], seconds: float, mel_frames: int) -> str:
    """Return the tokens of a video and its sound as a processor interleaves them.

    It reads unrounded times, so that its order may differ from that of the positions.

    Args:
        spec: with an `OmniRule`.
        grid: `(t, h, w)` in tokens.
        seconds: of a temporal step.
        mel_frames: of the audio.
    """
    rules = omni_reference(spec)
    step, rate = seconds, rules.tokens_per_second
    frames, height, width = grid
    times = [frame * step * rate for frame in range(frames) for _ in range(height * width)]
    left = audio_tokens(mel_frames, rules.n_window)
    symbols: list[str] = []
    heard = chunk = 0
    for time in times:
        if rules.interleave == "merge":
            due = min(-int(-time // 1), left)
        else:
            length = int(rate * (rules.seconds_per_chunk or 0))
            chunk += time >= (chunk + 1) * length
            due = min(chunk * length, left)
        symbols += ["A"] * (due - heard) + ["V"]
        heard = max(heard, due)
    return "".join(symbols) + "A" * (left - heard)


def video_with_sound(
    spec: MRopeSpec, *, frames: int, height: int, width: int, seconds: float
) -> Prompt:
    """Return a prompt of one video with its sound, of equal length, between some text.

    Args:
        spec: with an `OmniRule`.
        frames: temporal steps of the video.
        height: in tokens.
        width: in tokens.
        seconds: of a temporal step.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("qwen3_omni_moe", convention="transformers")
        >>> prompt = video_with_sound(spec, frames=2, height=1, width=2, seconds=0.08)
        >>> prompt.symbols, prompt.audio_seqlens
        (['tttt<(VVAAVV)>tttt'], tensor([16]))
    """
    merge = spec.spatial_merge_size
    mel_frames = max(8, int(frames * seconds * 100))
    block = sound_block(spec, (frames, height, width), seconds, mel_frames)
    return Prompt.from_symbols(
        spec,
        [f"tttt<({block})>tttt"],
        video_grid_thw=[(frames, height * merge, width * merge)],
        audio_seqlens=[mel_frames],
        second_per_grids=[seconds],
        use_audio_in_video=True,
    )
