"""Calls of the reference with the rules of GLM-4V."""

from vecrope.testing.reference import get_rope_index

IDS = {"t": 0, "<": 1, ">": 2, "[": 7, "]": 8, "I": 9}
MARKERS = {"image_token_id": 9, "video_start_token_id": 7, "video_end_token_id": 8}
SGLANG = {
    "marker_rule": "last",
    "separate_frames": True,
    "span_rule": "thw",
    "padding_value": 1,
    "delta_length": "padded",
}
TRANSFORMERS = {
    "marker_rule": "count",
    "separate_frames": True,
    "span_rule": "hw",
    "padding_value": 0,
    "delta_length": "valid",
}
CONVENTIONS = {"sglang": SGLANG, "transformers": TRANSFORMERS}


def rope_index(rows, convention, **arguments):
    return get_rope_index(
        [[IDS[symbol] for symbol in row] for row in rows],
        **{"spatial_merge_size": 2, **MARKERS, **convention, **arguments},
    )
