"""Samples of a data loader as one batch with its positions, padded or packed."""

from vecrope.collate.batch import collate
from vecrope.collate.dummy_image import dummy_image
from vecrope.collate.packing import packing_obstacles
from vecrope.collate.shard import shard_batch
from vecrope.collate.truncate import Dropped, truncate

__all__ = ["Dropped", "collate", "dummy_image", "packing_obstacles", "shard_batch", "truncate"]
