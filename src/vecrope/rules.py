"""The data of families that number their tokens by a rule of their own.

A spec whose `own_rule` is None is numbered by the pipeline that most families share. Every other
rule is the data of one room, which is named after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

_YARN = ("yarn", "deepseek_yarn")


@dataclass(frozen=True)
class OwnRule:
    """The data of a rule that is not the shared one."""

    # The arguments of `get_rope_index` that the rule reads and the shared one does not.
    arguments: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Hunyuan(OwnRule):
    """Every token has its index; on the last three axes an image has its columns, rows and ordinal.

    Args:
        num_axes: axes of the positions, at least 3.

    Raises:
        TypeError: if it is no int.
        ValueError: if it is less than 3.
    """

    num_axes: int

    def __post_init__(self) -> None:
        if not isinstance(self.num_axes, int) or isinstance(self.num_axes, bool):
            raise TypeError(f"num_axes must be an int, got {self.num_axes!r}")
        if self.num_axes < 3:
            raise ValueError(f"num_axes must be at least 3, got {self.num_axes}")

    @classmethod
    def of_section(cls, mrope_section: Sequence[float]) -> Hunyuan:
        """Return the rule of a model that splits its rotary dimensions into these sections."""
        return cls(len(mrope_section))


@dataclass(frozen=True)
class GlmImage(OwnRule):
    """Images stand between markers, and those that are still to be generated have grids as well.

    Args:
        image_start_token_id: the id right before an image.
        image_end_token_id: the id right after it.

    Raises:
        TypeError: if one of them is no int.
        ValueError: if they are equal.
    """

    image_start_token_id: int
    image_end_token_id: int
    arguments: ClassVar[frozenset[str]] = frozenset(("images_per_sample",))

    def __post_init__(self) -> None:
        for name in ("image_start_token_id", "image_end_token_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
        if self.image_start_token_id == self.image_end_token_id:
            raise ValueError(
                "image_start_token_id and image_end_token_id must differ, "
                f"got {self.image_start_token_id} for both"
            )


@dataclass(frozen=True)
class Isaac(OwnRule):
    """An image's rows and columns are counted from 0, wherever in the prompt it stands."""


@dataclass(frozen=True)
class Bailing(OwnRule):
    """Frames are two positions apart, and rows and columns are centred on their frame's position.

    Args:
        least_position: the least position that the checkpoint has room for; None: any.
        position_limit: the least position that it has no room for any more; None: any.
    """

    least_position: int | None = None
    position_limit: int | None = None

    @classmethod
    def of_context(
        cls,
        max_position_embeddings: int | None = None,
        rope_type: str = "default",
        factor: float = 1.0,
        original_max_position_embeddings: int = 0,
    ) -> Bailing:
        """Return the rule of a checkpoint of this context, which YaRN extends on one side alone.

        An original context of 0 stands for the same as the context.
        """
        if max_position_embeddings is None:
            return cls()
        limit = max_position_embeddings
        if rope_type in _YARN:
            limit = max(limit, int((original_max_position_embeddings or limit) * float(factor)))
        return cls(-max_position_embeddings, limit)
