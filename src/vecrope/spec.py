"""What distinguishes one M-RoPE family, under one convention, from another: data only."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_args

from vecrope.families import class_defaults, read_config, rules
from vecrope.families.fields import check_bool, check_int, check_one_of
from vecrope.families.names import hint
from vecrope.families.rules import OwnRule

Convention = Literal["sglang", "transformers", "vllm"]
MarkerRule = Literal["none", "last", "count", "adjacent"]
ImageTime = Literal["frames", "none"]
VideoTime = Literal["frames", "seconds"]
TimeOrder = Literal["rate", "seconds"]
TimeDtype = Literal["given", "float32", "float64", "int64"]
SpanRule = Literal["thw", "hw"]
MaskRule = Literal["skip", "ignore"]
DeltaLength = Literal["padded", "valid"]
PositionDtype = Literal["ids", "int64", "float32"]

_TOKEN_IDS = (
    "image_token_id",
    "video_token_id",
    "video_start_token_id",
    "video_end_token_id",
    "vision_start_token_id",
)
_NO_RULES = ("model_type", "own_rule")
_MERGE_SIZES = ("spatial_merge_size", "temporal_merge_size")
_FLAGS = ("separate_frames", "frames_may_touch", "multi_frame_images")
_CHOICES = {
    "convention": Convention,
    "marker_rule": MarkerRule,
    "image_time": ImageTime,
    "video_time": VideoTime,
    "time_order": TimeOrder,
    "time_dtype": TimeDtype,
    "span_rule": SpanRule,
    "mask_rule": MaskRule,
    "delta_length": DeltaLength,
    "position_dtype": PositionDtype,
}


@dataclass(frozen=True, kw_only=True)
class MRopeSpec:
    """The rules by which one model family numbers its tokens, under one convention.

    Build it with `from_config` or `for_model`; for an unknown family, from the fields below. A spec
    is immutable and hashable, so that it can be a constant of a compiled graph.

    Args:
        model_type: the `model_type` of the family's configuration.
        convention: the upstream whose answers are reproduced, `"sglang"`, `"transformers"` or
            `"vllm"`.
        image_token_id: the placeholder id of images; None where every token is text.
        video_token_id: the placeholder id of videos; None if videos use that of images, and markers
            tell the two apart.
        video_start_token_id: the id after which placeholders belong to a video. Needed by the
            marker rules `"last"` and `"count"`, as is `video_end_token_id`.
        video_end_token_id: the id after which placeholders belong to an image again.
        vision_start_token_id: the id right before every image and every separate frame. Needed by
            the marker rule `"adjacent"`.
        spatial_merge_size: patches per token along each spatial side of a grid, at least 1.
        temporal_merge_size: frames of a video's grid that share their tokens, at least 1.
        marker_rule: how images and videos are told apart. `"none"`: by their ids. `"last"`: a
            placeholder belongs to a video if the last marker before it in its row is a start
            (SGLang). `"count"`: if its row has more starts than ends before it (transformers'
            processors). `"adjacent"`: by their ids; a `vision_start_token_id` must precede every
            image, video and separate frame (SGLang).
        separate_frames: whether each frame of a video is numbered like an image, with or without
            text between frames; otherwise a video is one block.
        frames_may_touch: whether separate frames of a video may follow each other directly. vLLM
            takes such frames of GLM-4V for a block, which its processor never produces.
        image_time: the temporal offset of each frame of an image: the frame's index (`"frames"`) or
            0 (`"none"`).
        video_time: the temporal offset of each frame of a video that is a block: the frame's index
            (`"frames"`), or the elapsed time in units of `1 / tokens_per_second`, rounded down
            (`"seconds"`).
        tokens_per_second: positions per second, for `"seconds"`.
        time_order: which product is rounded first: `tokens_per_second` times the seconds of a step
            (`"rate"`), or the seconds of a step times the number of steps (`"seconds"`).
        time_dtype: the precision of these products. `"given"`: that of `second_per_grid_ts`.
            `"int64"`: the seconds of a step are first cut to whole numbers (transformers 4.52 to
            5.17).
        default_seconds: seconds of a step if none are given; None: they must be given.
        multi_frame_images: whether an image may have a temporal extent.
        span_rule: how far a block moves the running position. `"thw"`: past its largest position
            (SGLang, vLLM). `"hw"`: by the larger of height and width (transformers). They differ
            only for a block with more temporal than spatial extent.
        mask_rule: whether masked tokens are left out (`"skip"`) or numbered as if there were no
            mask (`"ignore"`: SGLang, for most families).
        padding_value: the position written at masked tokens.
        delta_length: the length that `rope_deltas` is measured against: the row's `"padded"` length
            or its number of `"valid"` (unmasked) tokens.
        position_dtype: of the positions: that of the `"ids"`, or always `"int64"` or `"float32"`.
        own_rule: the data of a rule that is not the shared one, of `vecrope.families.rules`.

    Raises:
        TypeError: for a field of the wrong type.
        ValueError: for a value outside the ones named above, and for fields that contradict each
            other.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")
        >>> spec.image_token_id, spec.spatial_merge_size, spec.padding_value
        (151343, 2, 1)
    """

    model_type: str
    convention: Convention
    image_token_id: int | None
    video_token_id: int | None = None
    video_start_token_id: int | None = None
    video_end_token_id: int | None = None
    vision_start_token_id: int | None = None
    spatial_merge_size: int
    temporal_merge_size: int = 1
    marker_rule: MarkerRule
    separate_frames: bool
    frames_may_touch: bool = True
    image_time: ImageTime = "frames"
    video_time: VideoTime = "frames"
    tokens_per_second: float | None = None
    time_order: TimeOrder = "rate"
    time_dtype: TimeDtype = "given"
    default_seconds: float | None = None
    multi_frame_images: bool = True
    span_rule: SpanRule
    mask_rule: MaskRule = "skip"
    padding_value: int
    delta_length: DeltaLength
    position_dtype: PositionDtype = "ids"
    own_rule: OwnRule | None = None

    # The fields as text, which a graph carries in their place. Each spec has its own; as a class
    # variable it is no field.
    as_text: ClassVar[str]

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            check_one_of(name, getattr(self, name), get_args(known))
        for name in (*_TOKEN_IDS, *_MERGE_SIZES, "padding_value"):
            value = getattr(self, name)
            if value is None and name in _TOKEN_IDS:
                continue
            check_int(name, value, None if name == "padding_value" else int(name in _MERGE_SIZES))
        for name in _FLAGS:
            check_bool(name, getattr(self, name))
        if self.own_rule is None:
            self._check_shared_rule()
        if self.own_rule is None or isinstance(self.own_rule, rules.OmniRule):
            self._check_ids_differ()
        # By nothing that a trace in which a spec is made cannot follow.
        names = [field.name for field in dataclass_fields(self) if field.name not in _NO_RULES]
        values = [f"{name}={getattr(self, name)!r}" for name in names]
        if (rule := self.own_rule) is not None:
            values.append(f"own_rule={type(rule).__name__!r}")
            names = [field.name for field in dataclass_fields(rule)]
            values += [f"own_rule.{name}={getattr(rule, name)!r}" for name in names]
        # In one line: Inductor writes it into a comment.
        object.__setattr__(self, "as_text", ";".join(values))

    @classmethod
    @lru_cache
    def from_text(cls, text: str) -> MRopeSpec:
        """Return the spec of a nameless family whose `as_text` is given; kept between calls."""
        pairs = (field.split("=", 1) for field in text.split(";"))
        given = {name: ast.literal_eval(value) for name, value in pairs}
        if "own_rule" in given:
            of_rule = [name for name in given if name.startswith("own_rule.")]
            values = {name.removeprefix("own_rule."): given.pop(name) for name in of_rule}
            given["own_rule"] = getattr(rules, given["own_rule"])(**values)
        return cls(model_type="", **given)

    def _check_shared_rule(self) -> None:
        """Check that the fields of the shared rule are there, and do not contradict each other."""
        needed: list[str] = []
        if self.marker_rule in ("last", "count"):
            needed += ["image_token_id", "video_start_token_id", "video_end_token_id"]
            if self.video_token_id is not None:
                raise ValueError(
                    f"video_token_id must be None with marker_rule {self.marker_rule!r}, which "
                    f"tells videos by their markers, got {self.video_token_id}"
                )
        elif self.marker_rule == "adjacent":
            needed.append("vision_start_token_id")
            if self.mask_rule != "ignore":
                raise ValueError(
                    "mask_rule must be 'ignore' with marker_rule 'adjacent', which looks at the "
                    f"token before, masked or not, got {self.mask_rule!r}"
                )
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(
                    f"{name} must be given for {self.model_type!r} with marker_rule "
                    f"{self.marker_rule!r}, got None"
                )
        if self.video_time == "seconds":
            if self.separate_frames:
                raise ValueError(
                    "video_time must be 'frames' with separate_frames, got 'seconds': a frame on "
                    "its own has no temporal extent"
                )
            rate = self.tokens_per_second
            if isinstance(rate, bool) or not isinstance(rate, int | float):
                raise TypeError(
                    f"tokens_per_second must be a number with video_time 'seconds', got {rate!r}"
                )
            if not 0 < rate < 2**31:
                raise ValueError(f"tokens_per_second must be positive, got {rate}")
            if self.time_dtype == "int64" and rate != int(rate):
                raise ValueError(
                    f"tokens_per_second must be whole with time_dtype 'int64', got {rate}"
                )
        elif self.tokens_per_second is not None:
            raise ValueError(
                "tokens_per_second must be None with video_time 'frames', "
                f"got {self.tokens_per_second}"
            )
        if self.separate_frames and self.temporal_merge_size > 1:
            raise ValueError(
                "temporal_merge_size must be 1 with separate_frames, "
                f"got {self.temporal_merge_size}"
            )

    def _check_ids_differ(self) -> None:
        """Check that no two of the given ids are equal, those of audio among them."""
        given = {name: getattr(self, name) for name in _TOKEN_IDS}
        for name in ("audio_token_id", "audio_start_token_id"):
            given[name] = getattr(self.own_rule, name, None)
        given = {name: value for name, value in given.items() if value is not None}
        if len(set(given.values())) < len(given):
            *names, last = given
            listed = f"{', '.join(names)} and {last}"
            raise ValueError(f"{listed} must differ, got {tuple(given.values())}")

    @property
    def markers(self) -> tuple[int, int, int]:
        """The placeholder and the two markers of the rules `"last"` and `"count"`."""
        ids = (self.image_token_id, self.video_start_token_id, self.video_end_token_id)
        image, video_start, video_end = ids
        assert image is not None
        assert video_start is not None
        assert video_end is not None
        return image, video_start, video_end

    @property
    def arguments(self) -> frozenset[str]:
        """The arguments of `get_rope_index` that this family reads, and not every family does."""
        if self.own_rule is not None:
            return self.own_rule.arguments
        return frozenset(("second_per_grid_ts",) if self.video_time == "seconds" else ())

    @classmethod
    def for_model(cls, model_type: str, *, convention: Convention, **fields: Any) -> MRopeSpec:
        """Return the spec of a family with the default ids of its transformers configuration class.

        Args:
            model_type: one of `vecrope.list_families()`.
            convention: the upstream whose answers are reproduced.
            **fields: other values for fields of the spec, and values for those without a default.

        Raises:
            ValueError: if the model type or the convention is not known, if that upstream has no
                such family, or if a field has no default and is not given.
            TypeError: for an unknown field, and for a configuration in the place of its name.

        Example:
            >>> import vecrope
            >>> spec = vecrope.MRopeSpec.for_model("qwen2_5_vl", convention="transformers")
            >>> spec.video_time, spec.tokens_per_second
            ('seconds', 4)
        """
        check_one_of("convention", convention, get_args(Convention))
        known = [field.name for field in dataclass_fields(cls)]
        for name in fields:
            if name not in known:
                meant = hint(name, known, "the docstring of MRopeSpec")
                raise TypeError(f"{name!r} is not a field of MRopeSpec; {meant}")
        values = class_defaults(model_type, convention, given=tuple(fields))
        return cls(model_type=model_type, convention=convention, **{**values, **fields})

    @classmethod
    def from_config(cls, config: Any, *, convention: Convention) -> MRopeSpec:
        """Return the spec that a model's configuration describes.

        Args:
            config: a transformers configuration, any object with the same attributes, or the dict
                of a parsed `config.json`.
            convention: the upstream whose answers are reproduced.

        Raises:
            ValueError: if the model type or the convention is not known, if that upstream has no
                such family, if the family has no M-RoPE, or if a field is missing.
            TypeError: if a field is of the wrong type.
        """
        check_one_of("convention", convention, get_args(Convention))
        model_type, values = read_config(config, convention)
        return cls(model_type=model_type, convention=convention, **values)
