"""Sizes that the kernels and the host share."""

# Tokens in a block, and blocks, sequences or items that are read at a time.
BLOCK = 512
CHUNK = 256
# Numbers of the workspace: of 64 bits, what is wrong; of 32, those of each block and each item.
NUM_FAULTS = 3
NUM_BLOCK_ROWS = 7
NUM_ITEM_ROWS = 7
# Ranks and positions have 32 bits, and a marker's index takes one more.
MAX_TOKENS = 2**30
# The caller's tensors, and what is a part of another: they may start anywhere.
ARGUMENTS = [
    *("ids", "mask", "types", "bounds", "seconds", "image_grids", "video_grids"),
    *("positions", "deltas", "outline"),
]
