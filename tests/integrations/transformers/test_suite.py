"""The tests of transformers' release that come with it, on tiny models, patched and not.

Its source distribution holds the tests that all models share, and not those of each model. They
import `parameterized`, which nothing else here does, so that it is to be installed for them.
"""

import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = os.environ.get("VECROPE_TRANSFORMERS_SDIST")
FAMILIES = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TESTS = Path(__file__).parents[2]

CASES = """
import os
import unittest

from tiny_models import inputs_of, tiny_config, tiny_model
from vecrope.integrations.transformers import patch

from . import test_modeling_common as common


class ModelTester:
    is_training = False
    parent = seq_length = None
    batch_size = 2

    def __init__(self, model_type):
        self.model_type = model_type

    def prepare_config_and_inputs_for_common(self):
        return tiny_config(self.model_type), inputs_of(self.model_type, "images")


def make_case(model_type):
    model = tiny_model(model_type)

    class Case(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes = (type(model.model), type(model))
        _is_composite = True

        def setUp(self):
            self.model_tester = ModelTester(model_type)

    if os.environ["PATCHED"] == "1":
        patch(type(model.model))
    return Case


for name in os.environ["FAMILIES"].split():
    globals()[f"Test_{name}"] = make_case(name)
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Unpack the tests; of what they import and do not come with it, give them empty classes."""
    assert find_spec("parameterized"), "transformers' tests import parameterized: install it"
    root = tmp_path_factory.mktemp("suite")
    with tarfile.open(SOURCE) as archive:
        members = [each for each in archive.getmembers() if each.name.split("/")[1:2] == ["tests"]]
        archive.extractall(root, members=members, filter="data")
    (tests,) = root.glob("*/tests")
    for module, name in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        path = tests.joinpath(*module.split(".")).with_suffix(".py")
        assert not path.exists()
        path.parent.mkdir()
        (path.parent / "__init__.py").touch()
        path.write_text(f"class {name}:\n    pass\n")
    (tests / "__init__.py").touch()
    (tests / "test_tiny.py").write_text(CASES)
    (tests.parent / "pytest.ini").write_text("[pytest]\n")
    return tests


def outcomes(suite, *, patched):
    """Return what became of each test."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_tiny.py", "-q", "--tb=no", "-rA"],
        cwd=suite.parent,
        env={
            **os.environ,
            "PATCHED": str(int(patched)),
            "FAMILIES": " ".join(FAMILIES),
            "PYTHONPATH": os.pathsep.join(
                [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
            ),
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
    )
    lines = (line.split() for line in result.stdout.splitlines())
    found = {words[1]: words[0] for words in lines if words and words[0] in ("PASSED", "FAILED")}
    assert found, result.stdout + result.stderr
    return found


@pytest.mark.wheels
@pytest.mark.slow
@pytest.mark.skipif(
    SOURCE is None,
    reason="VECROPE_TRANSFORMERS_SDIST does not name a source distribution of transformers",
)
def test_what_passes_with_the_models_own_method_passes_when_patched(suite):
    plain, patched = outcomes(suite, patched=False), outcomes(suite, patched=True)
    assert patched == plain
    for model_type in FAMILIES:
        # It makes the positions beforehand, and compares embeddings with ids.
        test = f"tests/test_tiny.py::Test_{model_type}::test_inputs_embeds_matches_input_ids"
        assert patched[test] == "PASSED"
