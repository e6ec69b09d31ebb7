import os
from collections import Counter

import pytest
import torch
from hypothesis import settings

# Without a GPU, Triton's kernels run in its interpreter. It looks at this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=10, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("thorough", max_examples=5000, deadline=None)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(scope="session")
def tiny_model():
    """Return a function that makes a Qwen2-VL of random weights, always the same."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    def make(implementation="sdpa"):
        config = Qwen2VLConfig(
            text_config={
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
            vision_config={
                "depth": 1,
                "embed_dim": 16,
                "num_heads": 2,
                "mlp_ratio": 2,
                "hidden_size": 32,
                "patch_size": 4,
            },
            image_token_id=60,
            video_token_id=61,
            vision_start_token_id=62,
            vision_end_token_id=63,
            attn_implementation=implementation,
        )
        torch.manual_seed(0)
        return Qwen2VLForConditionalGeneration(config)

    return make


def pytest_terminal_summary(terminalreporter):
    """Say in one line why tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        listed = "; ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        terminalreporter.write_line(f"skipped: {listed}")
