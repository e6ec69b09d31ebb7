"""Prompts of an omni family that hold all kinds of media together, in many sizes."""

from hypothesis import strategies as st

from vecrope.testing import Prompt
from vecrope.testing.sound import sound_block

# As exact as float32 is: steps of which no product is a whole number, and some that nearly are.
SECONDS = st.one_of(
    st.floats(0, 6, width=32),
    st.sampled_from((1.0, 0.5, 2 / 3, 1 / 13, 1 - 2**-24, 1 + 2**-23, 0.0799999982)),
)


@st.composite
def mixtures(draw, spec, kinds=("image", "video", "audio", "sound"), last=None, max_rows=3):
    """Draw rows of text, images, videos, audio and videos with sound, padded on either side.

    Args:
        draw: given by hypothesis.
        spec: of an omni family.
        kinds: of items.
        last: the kind of the last item of each row; None: any.
        max_rows: the largest B.
    """
    side, merge = st.integers(1, 6), spec.spatial_merge_size
    least = 3 if spec.own_rule.n_window is None else 1
    media = {"image": [], "video": [], "audio": [], "seconds": [], "sound": []}

    def item(kind):
        frames = draw(st.integers(1, 2 if kind == "image" else 8))
        height, width = draw(side), draw(side)
        tokens, grid = frames * height * width, (frames, height * merge, width * merge)
        if kind == "audio":
            media["audio"].append(draw(st.integers(least, 300)))
            return f"({sound_block(spec, (0, 1, 1), 0.0, media['audio'][-1])})"
        if kind == "image":
            media["image"].append(grid)
            return f"<{'I' * tokens}>"
        media["video"].append(grid)
        media["seconds"].append(draw(SECONDS))
        media["sound"].append(kind == "sound")
        if kind == "video":
            return f"<{'V' * tokens}>"
        media["audio"].append(draw(st.integers(least, 300)))
        block = sound_block(
            spec, (frames, height, width), *(media[k][-1] for k in ("seconds", "audio"))
        )
        return f"<({block})>"

    rows = []
    for _ in range(draw(st.integers(1, max_rows))):
        drawn = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))
        drawn += [] if last is None else [last]
        rows.append("".join("t" * draw(st.integers(0, 7)) + item(kind) for kind in drawn) + "t")
    seq_len = max(map(len, rows)) + draw(st.integers(0, 2))
    left = [draw(st.integers(0, seq_len - len(row))) for row in rows]
    masks = [("0" * n + "1" * len(r)).ljust(seq_len, "0") for n, r in zip(left, rows, strict=True)]
    return Prompt.from_symbols(
        spec,
        [("t" * n + row).ljust(seq_len, "t") for n, row in zip(left, rows, strict=True)],
        mask=masks if any("0" in mask for mask in masks) else None,
        image_grid_thw=media["image"],
        video_grid_thw=media["video"] or None,
        audio_seqlens=media["audio"] or None,
        second_per_grids=media["seconds"] if media["video"] else None,
        use_audio_in_video=media["sound"]
        if "video" in kinds and "sound" in kinds
        else "sound" in kinds,
    )
