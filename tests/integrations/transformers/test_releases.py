"""Methods of released files of transformers: known, and answered as they answer."""

import os
from pathlib import Path

import pytest

from tests.integrations.transformers.releases import difference, fingerprint_of, methods_of
from vecrope.families import FAMILIES
from vecrope.integrations.transformers.admission import fitting
from vecrope.integrations.transformers.known import known
from vecrope.integrations.transformers.rules import rules_of

FOLDER = os.environ.get("VECROPE_TRANSFORMERS_RELEASES")
RELEASES = sorted(path.name for path in Path(FOLDER).iterdir()) if FOLDER else []


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
