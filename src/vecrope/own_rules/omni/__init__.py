"""Qwen2.5-Omni and Qwen3-Omni: images, videos, audio, and videos with their sound.

Text and audio count up on all three axes, images and videos read row and column off their grids,
frames are spaced in time, and the next token follows the largest position so far. The tokens of a
video and its sound take turns by their times. Positions are of `spec.position_dtype`, or of
`text_dtype` in a batch without grids, and deltas float32 where positions are, otherwise int64.

Each item follows from the one before, with a rounding for each where positions are float32: all
batches are numbered on the host, in one wait for their device. The rules are those of transformers'
`get_rope_index`, SGLang's `get_rope_index_qwen3_omni` and vLLM's `get_mrope_input_positions`.
"""
