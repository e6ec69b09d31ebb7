"""Methods of released files of transformers: known, and answered as they answer."""

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integrations.transformers.releases import (
    TABLE,
    difference,
    fingerprint_of,
    methods_of,
)
from vecrope.families import FAMILIES
from vecrope.integrations.transformers.admission import fitting
from vecrope.integrations.transformers.known import known
from vecrope.integrations.transformers.rules import rules_of

FOLDER = os.environ.get("VECROPE_TRANSFORMERS_RELEASES")
RELEASES = sorted(path.name for path in Path(FOLDER).iterdir()) if FOLDER else []


def minors(versions):
    return {tuple(map(int, version.split(".")[:2])) for version in versions}


def test_every_release_that_the_readme_names_was_run():
    entries = [
        entry for family in json.loads(TABLE.read_text()).values() for entry in family.values()
    ]
    run = minors(release for entry in entries for release in entry["releases"])
    for first, second in pairwise(sorted(run)):
        assert second in {(first[0], first[1] + 1), (5, 0)}, "a minor version is left out"
    text = (TABLE.parents[1] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d.*?) \|", text.partition("## SGLang")[0], flags=re.MULTILINE)
    named = minors(re.findall(r"\d+\.\d+", " ".join(rows)))
    assert len(named) > 5
    assert named <= run
    assert max(named) == max(run)


@pytest.mark.releases
@pytest.mark.skipif(
    FOLDER is None,
    reason="VECROPE_TRANSFORMERS_RELEASES names no folder of unpacked releases of transformers",
)
@pytest.mark.parametrize("release", RELEASES or [None])
def test_every_method_of_a_release_is_known_and_answers_alike(release, tmp_path):
    seen = 0
    for model_type, cls in methods_of(Path(FOLDER) / release, tmp_path):
        if "transformers" not in getattr(FAMILIES.get(model_type), "rules", ()):
            continue
        entry = known(model_type, fingerprint_of(cls))
        assert entry is not None, model_type
        seen += 1
        if "rules" in entry:
            assert difference(cls, model_type, rules_of(model_type)[entry["rules"]]) is None
        else:
            for rules in fitting(cls.get_rope_index, model_type).values():
                assert difference(cls, model_type, rules) is not None
    assert seen
