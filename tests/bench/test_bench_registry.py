from dataclasses import replace

from bench.registry import PROVIDERS, WHEEL_NAMES, make_providers
from bench.workloads import make_workload


def test_installed_providers_are_the_default():
    made = make_providers(None, dict.fromkeys(WHEEL_NAMES))
    names = ["vecrope", "vecrope-unchecked", "vecrope-compiled", "vecrope-placeholders"]
    names += [
        "vecrope-plan",
        "vecrope-concatenate",
        "vecrope-replace",
        "vecrope-collate",
        "vecrope-batch-positions",
        "vecrope-runner",
        "vecrope-runner-in-place",
        "dense",
    ]
    names += ["loop", "vecrope-patched", "transformers"]
    assert [provider.name for provider in made] == names
    assert list(PROVIDERS[: len(names)]) == names


def test_long_batches_are_for_those_that_answer_in_time():
    workload = replace(make_workload("short", 300), name="long")
    made = make_providers(None, dict.fromkeys(WHEEL_NAMES))
    fit = {provider.name for provider in made if not provider.why_not(workload)}
    assert fit == {"vecrope", "vecrope-unchecked"}
    # Of those that are for a few workloads, the reason lists them.
    reasons = {provider.why_not(workload) for provider in made if not provider.only} - {""}
    assert reasons == {
        "takes seconds a call at this length",
        "numbers steps, not prompts",
        "needs a CUDA device; run it with --device cuda",
    }
