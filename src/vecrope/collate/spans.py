"""Where in a sample each picture, clip and sound stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vecrope.collate.samples import Sample
from vecrope.families.rules import GlmImage, MiniCPMV47, OmniRule
from vecrope.forms.eager.rope_index import find_groups
from vecrope.own_rules.common import unmasked_tokens
from vecrope.own_rules.dispatch import lay_out
from vecrope.own_rules.minicpmv4_7.host import lay_out_minicpmv4_7
from vecrope.own_rules.omni.find import Finder
from vecrope.own_rules.omni.media import KINDS, read_media
from vecrope.prepare import prepare
from vecrope.spec import MRopeSpec


@dataclass
class Span:
    """Tokens from `start` up to `stop` that stay together, and the media that they stand for."""

    start: int
    stop: int
    # By kind, "image", "video" or "audio": of each item its rows of grids, of sizes or of audio.
    media: dict[str, list[list[int]]]

    def rows(self, kind: str) -> list[int]:
        """Return the rows of all items of a kind."""
        return [row for item in self.media.get(kind, ()) for row in item]


def find_spans(
    sample: Sample,
    spec: MRopeSpec,
    start_token_ids: Sequence[int],
    end_token_ids: Sequence[int],
) -> list[Span]:
    """Return the spans of a sample that fits its grids, in order, markers included.

    A clip reaches from its first frame to its last, with the text between them, and a clip with its
    sound is one span.
    """
    rule = spec.own_rule
    if isinstance(rule, OmniRule):
        spans = _of_omni(sample, spec, rule)
    elif isinstance(rule, GlmImage):
        spans = _between_markers(sample, rule)
    elif isinstance(rule, MiniCPMV47):
        spans = _of_crops(sample, spec, rule)
    else:
        spans = _of_items(sample, spec)
    ids = sample.tokens["input_ids"].tolist()
    opening = {*start_token_ids, spec.vision_start_token_id, spec.video_start_token_id}
    closing = {*end_token_ids, spec.video_end_token_id}
    if isinstance(rule, OmniRule):
        opening.add(rule.audio_start_token_id)
    if isinstance(rule, MiniCPMV47):
        opening.add(rule.image_start_id)
        closing |= {rule.image_end_id, rule.slice_end_id}
    spans = _merged(spans)
    for number, span in enumerate(spans):
        least = spans[number - 1].stop if number else 0
        most = spans[number + 1].start if number + 1 < len(spans) else len(ids)
        if "video" in span.media:
            # Around the frames of a clip may be more text of its own.
            before, behind = ids[least : span.start], ids[span.stop : most]
            if spec.video_start_token_id in before:
                span.start -= before[::-1].index(spec.video_start_token_id) + 1
            if spec.video_end_token_id in behind:
                span.stop += behind.index(spec.video_end_token_id) + 1
        while span.start > least and ids[span.start - 1] in opening:
            span.start -= 1
        while span.stop < most and ids[span.stop] in closing:
            span.stop += 1
    return _with_whole_clips(spans) if isinstance(rule, MiniCPMV47) else spans


def _of_items(sample: Sample, spec: MRopeSpec) -> list[Span]:
    inputs = prepare(sample.inputs(spec), spec, validate=True).inputs
    index, num_images = None, sample.counts["image"]
    if spec.own_rule is None:
        parts = find_groups(inputs, spec).parts
        media = [*zip(parts.starts, parts.stops, parts.item, strict=True)]
    else:
        layout = lay_out(inputs, spec)
        media, index = layout.media, layout.tokens.given_index
    spans: dict[int, Span] = {}
    for start, stop, item in media:
        if index is not None:
            start, stop = int(index[start]), int(index[stop - 1]) + 1
        kind, ordinal = ("image", item) if item < num_images else ("video", item - num_images)
        spans.setdefault(item, Span(start, stop, {kind: [[ordinal]]})).stop = stop
    return [*spans.values()]


def _of_crops(sample: Sample, spec: MRopeSpec, rule: MiniCPMV47) -> list[Span]:
    """Return the pictures, of which the frames of a clip are some: a thumbnail and its slices."""
    inputs = prepare(sample.inputs(spec), spec, validate=True).inputs
    tokens = unmasked_tokens(inputs)
    index = tokens.given_index
    at = range(sample.length) if index is None else index.tolist()
    num_images = 0 if inputs.target_sizes is None else len(inputs.target_sizes)
    spans: list[Span] = []
    for start, stop, number in lay_out_minicpmv4_7(tokens, spec).media:
        kind, row = ("image", number) if number < num_images else ("video", number - num_images)
        if spans and int(tokens.ids[start - 1]) == rule.slice_start_id:
            spans[-1].stop = at[stop - 1] + 1
            spans[-1].media[kind][0].append(row)
        else:
            spans.append(Span(at[start], at[stop - 1] + 1, {kind: [[row]]}))
    return spans


def _with_whole_clips(spans: list[Span]) -> list[Span]:
    """Return spans with the frames that touch as one clip."""
    joined: list[Span] = []
    for span in spans:
        frames = span.media.get("video")
        before = joined[-1].media.get("video") if joined else None
        if frames and before and joined[-1].stop == span.start:
            joined[-1].stop = span.stop
            before[0] += frames[0]
        else:
            joined.append(span)
    return joined


def _of_omni(sample: Sample, spec: MRopeSpec, rule: OmniRule) -> list[Span]:
    inputs = prepare(sample.inputs(spec), spec, validate=True).inputs
    tokens, media = unmasked_tokens(inputs), read_media(inputs, spec, rule)
    index, spans = tokens.given_index, []
    for _, start, markers, visual, sound in Finder(tokens, media, spec).find():
        rows: dict[str, list[list[int]]] = {}
        stop = start + 2 * markers + media.size[visual] + media.size[sound]
        for number in (visual, sound):
            if number >= 0:
                kind, row = media.place(number)
                rows[KINDS[kind]] = [[row]]
        if index is not None:
            start, stop = int(index[start]), int(index[stop - 1]) + 1
        spans.append(Span(start, stop, rows))
    return spans


def _between_markers(sample: Sample, rule: GlmImage) -> list[Span]:
    """Return the sources: from the k-th start marker to the k-th end marker is the k-th grid.

    The grids behind them are of pictures to be generated, which stand nowhere.
    """
    ids = sample.tokens["input_ids"]
    starts, ends = (
        (ids == marker).nonzero()[:, 0].tolist()
        for marker in (rule.image_start_token_id, rule.image_end_token_id)
    )
    pairs = zip(starts, ends)  # noqa: B905 -- a start without an end is that of a new picture
    return [Span(start, end + 1, {"image": [[at]]}) for at, (start, end) in enumerate(pairs)]


def _merged(spans: list[Span]) -> list[Span]:
    """Return spans in order, those that overlap as one."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if merged and span.start < merged[-1].stop:
            merged[-1].stop = max(merged[-1].stop, span.stop)
            for kind, items in span.media.items():
                merged[-1].media[kind] = merged[-1].media.get(kind, []) + items
        else:
            merged.append(span)
    return merged
