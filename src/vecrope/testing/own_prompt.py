"""One prompt of a family with a rule of its own: its arguments, and what they have to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vecrope.families.rules import Bailing, GlmImage, Hunyuan, Isaac
from vecrope.spec import MRopeSpec
from vecrope.testing import own_rules

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class OwnPrompt:
    """A batch of token rows with its mask and its grids, in plain lists.

    Attributes:
        spec: the rules under which the prompt is read.
        input_ids: B rows of T ids.
        image_grid_thw: `(t, h, w)` for each image, or None.
        video_grid_thw: the same for videos, or None.
        attention_mask: B rows of T values 1 or 0, or None: all are tokens.
        images_per_sample: B numbers of grids, or None.

    Example:
        >>> import vecrope
        >>> spec = vecrope.MRopeSpec.for_model(
        ...     "isaac", convention="vllm", image_token_id=9, spatial_merge_size=2
        ... )
        >>> prompt = OwnPrompt(spec, [[9, 9, 1]], image_grid_thw=[[1, 2, 4]])
        >>> position_ids, rope_deltas = prompt.expected()
        >>> position_ids[:, 0]
        tensor([[0, 0, 1],
                [0, 0, 1],
                [0, 1, 1]])
    """

    spec: MRopeSpec
    input_ids: Rows
    image_grid_thw: Rows | None = None
    video_grid_thw: Rows | None = None
    attention_mask: Rows | None = None
    images_per_sample: Sequence[int] | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what is given, as the keyword arguments of `vecrope.get_rope_index`, int64."""
        given = {
            "input_ids": _table(self.input_ids, len(self.input_ids), -1),
            "image_grid_thw": _table(self.image_grid_thw, -1, 3),
            "video_grid_thw": _table(self.video_grid_thw, -1, 3),
            "attention_mask": _table(self.attention_mask, len(self.input_ids), -1),
            "images_per_sample": _table(self.images_per_sample, -1),
        }
        return {name: value for name, value in given.items() if value is not None}

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's `position_ids` and `rope_deltas`, int64.

        Raises:
            Refusal: if the prompt has no positions.
        """
        answer = self._answer()
        batch = len(self.input_ids)
        position_ids = torch.tensor(answer.position_ids).reshape(
            len(answer.position_ids), batch, -1
        )
        return position_ids, torch.tensor(answer.rope_deltas).reshape(batch, 1)

    def expected_decode(self) -> list[list[tuple[int, ...]]]:
        """Return the positions that follow each row's prompt, of glm_image.

        Raises:
            Refusal: if the prompt has no positions.
        """
        return self._answer().decode

    def _answer(self) -> own_rules.Answer:
        spec, rule = self.spec, self.spec.own_rule
        assert spec.image_token_id is not None
        image: dict[str, Any] = {
            "image_token_id": spec.image_token_id,
            "image_grid_thw": self.image_grid_thw,
        }
        mask = self.attention_mask if spec.mask_rule == "skip" else None
        merge = spec.spatial_merge_size
        if isinstance(rule, Hunyuan):
            return own_rules.hunyuan(
                self.input_ids,
                num_axes=rule.num_axes,
                spatial_merge_size=merge,
                attention_mask=mask,
                **image,
            )
        if isinstance(rule, GlmImage):
            return own_rules.glm_image(
                self.input_ids,
                image_start_token_id=rule.image_start_token_id,
                image_end_token_id=rule.image_end_token_id,
                always_ends=spec.convention == "transformers",
                padding_value=spec.padding_value,
                images_per_sample=self.images_per_sample,
                attention_mask=mask,
                **image,
            )
        if isinstance(rule, Isaac):
            return own_rules.isaac(
                self.input_ids,
                spatial_merge_size=merge,
                padding_value=spec.padding_value,
                attention_mask=mask,
                **image,
            )
        assert isinstance(rule, Bailing)
        assert spec.video_token_id is not None
        assert spec.vision_start_token_id is not None
        assert spec.video_start_token_id is not None
        bounds = None
        if rule.least_position is not None and rule.position_limit is not None:
            bounds = (rule.least_position, rule.position_limit)
        return own_rules.bailing(
            self.input_ids,
            video_token_id=spec.video_token_id,
            image_start_token_id=spec.vision_start_token_id,
            video_start_token_id=spec.video_start_token_id,
            separate_frames=spec.separate_frames,
            spatial_merge_size=merge,
            bounds=bounds,
            video_grid_thw=self.video_grid_thw,
            **image,
        )


def _table(values: Any, *shape: int) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int64).reshape(shape)
