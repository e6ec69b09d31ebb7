import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU, Triton's kernels run in its interpreter. It looks at this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TESTS = Path(__file__).parent
# Folders, files and tests that take more than a few seconds: `-m "not slow"` leaves them out.
SLOW = (
    "bench",
    "checks/test_metadata.py::test_metadata_is_refused_under_compile",
    "cli/test_plot.py",
    "cli/test_process.py",
    "collate/test_loops.py",
    "collate/test_models.py::test_packed_samples_are_apart",
    "collate/test_processors.py::test_samples_make_the_processors_batch",
    "collate/test_ranks.py",
    "families/test_recorded_answers.py",
    "families/test_static.py",
    "families/test_upstreams.py",
    "families/test_worked_examples.py",
    "forms/test_compiled.py",
    "forms/test_exported.py",
    "forms/test_fake_tensors.py",
    "forms/test_static.py::test_a_misfit_that_is_traced_gives_no_answer",
    "forms/triton",
    "integrations/transformers/test_answers.py",
    "integrations/transformers/test_compiled_model.py",
    "integrations/transformers/test_models.py",
    "integrations/transformers/test_omni.py",
    "integrations/transformers/test_own_rules.py",
    "integrations/transformers/test_patching.py",
    "integrations/transformers/test_self_check.py::test_a_method_that_is_not_known_and_agrees_is_replaced_with_one_warning",
    "integrations/transformers/test_static.py",
    "own_rules/bailing/test_upstreams.py",
    "own_rules/glm_image/test_plans.py::test_a_compiled_plan_equals_an_eager_one_and_a_misfit_gives_no_answer",
    "own_rules/glm_image/test_static.py",
    "own_rules/minicpmv4_7/test_static.py",
    "own_rules/omni/test_mixtures.py",
    "own_rules/omni/test_static.py",
    "own_rules/omni/test_upstreams.py",
    "own_rules/test_static.py",
    "own_rules/test_strategies.py",
    "plans/test_placeholders_unread.py",
    "plans/test_sequences.py::test_packed_equals_transformers_one_by_one",
    "plans/test_sequences_unread.py::test_compiled_equals_eager",
    "plans/test_sequences_unread.py::test_compiled_what_is_refused_gives_no_answer",
    "plans/test_table.py::test_a_program_that_takes_and_returns_plans_is_saved_and_loaded",
    "plans/test_unread.py::test_compiled_equals_eager_and_compiles_once",
    "plans/test_unread.py::test_exported_equals_eager",
    "real_input",
    "test_exported.py",
    "test_package.py",
    "test_shards.py::test_shards_of_real_processes_give_the_whole",
    "test_shards.py::test_the_example_of_the_readme_runs_under_torchrun",
    "testing/test_command.py",
    "testing/test_omni.py",
    "testing/test_planted_bugs.py",
    "testing/test_reference_golden.py",
    "testing/test_strategies.py",
    "threads/test_threads.py",
)

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("fast", max_examples=6, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("ci", max_examples=10, derandomize=True, deadline=None, print_blob=True)
# Hypothesis draws the same examples each time where CI is set, unless it is told not to.
settings.register_profile("thorough", max_examples=5000, derandomize=False, deadline=None)


def pytest_configure(config):
    ci = "ci" if os.environ.get("CI") else "dev"
    profile = "fast" if is_fast(config) else ci
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


def is_fast(config):
    return config.option.markexpr == "not slow"


def pytest_ignore_collect(collection_path, config):
    """Leave files of slow tests unread, which takes a third of the time of collecting."""
    if is_fast(config) and collection_path.is_relative_to(TESTS):
        return collection_path.relative_to(TESTS).as_posix() in SLOW or None
    return None


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


def pytest_collection_modifyitems(items):
    slow = tuple(f"tests/{name}{end}" for name in SLOW for end in ("/", "::", "["))
    for item in items:
        if f"{item.nodeid}[".startswith(slow):
            item.add_marker(pytest.mark.slow)
