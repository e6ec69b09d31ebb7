"""Releases of transformers: their methods, taken out of the released files, and the table of them.

`known.json` is made in one run, of the first and the last release of every minor version since 4.49
(and of those between that have another method, 4.53.1 and 4.53.2), each unpacked in a folder of its
version:

    pip download --no-deps transformers==X && unzip transformers-X-*.whl -d FOLDER/X
    PYTHONPATH=.:tests python -m tests.integrations.transformers.releases FOLDER

A method is put into a class of its own, with the methods and functions that it reaches, so that
neither the release's requirements nor a second process are needed.
"""

import ast
import importlib.util
import json
import linecache
import re
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from hypothesis import HealthCheck, Phase, given, settings

from tests.integrations.transformers import test_omni, test_own_rules
from tests.own_rules.minicpmv4_7.calls import hostile, without_zeros
from vecrope.families import FAMILIES
from vecrope.integrations.fingerprint import fingerprint
from vecrope.integrations.transformers import known
from vecrope.integrations.transformers.admission import fitting
from vecrope.integrations.transformers.reached import helpers_of
from vecrope.integrations.transformers.rules import rules_of
from vecrope.integrations.transformers.self_check import first_difference
from vecrope.integrations.transformers.self_check_prompts import self_check_prompts
from vecrope.testing import conversations

TABLE = Path(known.__file__).with_name("known.json")


def methods_of(release, folder):
    """Yield (model type, class) for every method that a release has."""
    for path in sorted(Path(release).glob("transformers/models/*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        if "def get_rope_index" not in source:
            continue
        module = load(source, f"transformers.models.{path.parent.name}.{path.stem}", folder)
        found = {}
        for name, cls in vars(module).items():
            if isinstance(cls, type) and hasattr(cls, "get_rope_index"):
                found.setdefault(model_type_of(path.parent.name, name), cls)
        yield from found.items()


def model_type_of(family, class_name):
    if family.endswith(("omni", "omni_moe")) and "cosmos" not in family:
        return f"{family}_talker" if "Talker" in class_name else f"{family}_thinker"
    return family


def load(source, name, folder):
    """Execute the classes that have the method, less all else of them, and the functions.

    A class that inherits the method is an empty one: the talker of an omni family does.
    """
    tree = ast.parse(source)
    kept, owners = [], set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            kept.append(node)
        elif isinstance(node, ast.ClassDef):
            functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            node.decorator_list = []
            if not any(each.name == "get_rope_index" for each in functions):
                node.bases = [each for each in node.bases if ast.unparse(each) in owners]
                node.body = [ast.Pass()]
                kept += [node] if node.bases else []
                continue
            owners.add(node.name)
            reached = {"get_rope_index"}
            for _ in range(len(functions)):
                for each in functions:
                    if each.name in reached:
                        reached |= {
                            found.attr
                            for found in ast.walk(each)
                            if isinstance(found, ast.Attribute)
                        }
            node.body = [each for each in functions if each.name in reached]
            node.bases = [ast.parse("nn.Module").body[0].value]
            kept.append(node)
    kept = [ast.unparse(each) for each in kept]
    header = "from __future__ import annotations\nimport itertools\nimport numpy as np\n"
    header += "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n"
    path = Path(folder) / f"{name}.py"
    path.write_text(header + "\n\n".join(kept), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fingerprint_of(cls):
    method = cls.get_rope_index
    return fingerprint(method, *helpers_of(method, cls))


def configuration_of(model_type):
    """Return a configuration of what positions depend on."""
    if model_type in OWN:
        config = OWN[model_type]().config
        if model_type.startswith("qwen3_omni"):
            config.audio_config.n_window = 13
        return config
    return SimpleNamespace(
        model_type=model_type,
        image_token_id=9,
        video_token_id=10,
        vision_start_token_id=11,
        video_start_token_id=15,
        video_end_token_id=16,
        vision_config=SimpleNamespace(
            spatial_merge_size=2, temporal_merge_size=2, tokens_per_second=4
        ),
    )


OWN = {
    "hunyuan_vl": test_own_rules.hunyuan,
    "glm_image": test_own_rules.glm_image,
    "minicpmv4_7": test_own_rules.minicpm,
    **{name: partial(test_omni.bare, name) for name in test_omni.CLASSES},
}


def prompts_of(model_type, spec, seeds):
    """Yield arguments of prompts that the method of every release has positions for."""
    for seed in range(seeds):
        yield from self_check_prompts(spec, seed)
    if model_type in test_omni.CLASSES:
        for prompt in drawn(conversations(spec), 40 * seeds):
            yield test_omni.arguments_of(prompt)
    elif model_type == "minicpmv4_7":
        for prompt in drawn(hostile(spec), 40 * seeds):
            images, videos = map(without_zeros, (prompt.target_sizes, prompt.target_sizes_videos))
            arguments = replace(prompt, target_sizes=images, target_sizes_videos=videos).arguments()
            with suppress(ValueError):
                rules_of(model_type)["own rule"].call(None, spec, True, **arguments)
                yield arguments
    elif model_type in OWN:
        for prompt in drawn(conversations(spec), 40 * seeds):
            arguments = prompt.arguments()
            if not test_own_rules.has_an_empty_row(prompt):
                types = (arguments["input_ids"] == spec.image_token_id).int()
                yield {**arguments, "mm_token_type_ids": types}


def drawn(strategy, number):
    found = []

    @settings(
        max_examples=number,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(prompt):
        found.append(prompt)

    collect()
    return found


def difference(cls, model_type, rules, seeds=1):
    """Return the first prompt on which a release's method differs from ours, or None."""
    config = configuration_of(model_type)
    spec = rules.spec_of(config)
    prompts = prompts_of(model_type, spec, seeds)
    return first_difference(cls.get_rope_index, cls, config, rules.call, spec, prompts)


def run(model_type, cls, release):
    """Return what the table says of a method."""
    differences = []
    for name, rules in fitting(cls.get_rope_index, model_type).items():
        differences.append(difference(cls, model_type, rules, seeds=2))
        if differences[-1] is None:
            return {"rules": name}
    minor = ".".join(release.split(".")[:2])
    if minor not in REFUSED:
        raise ValueError(
            f"{model_type} of {release} differs, and REFUSED says not why: {differences}"
        )
    return {"refused": REFUSED[minor]}


_WRONG = (
    "images and videos of several frames have wrong positions in transformers 5.3 to 5.5: install "
    "5.6 or later, or 5.1 or earlier"
)
REFUSED = {
    **dict.fromkeys(("5.3", "5.4", "5.5"), _WRONG),
    "5.2": (
        "transformers 5.2 numbers by rules that no other release has: install 5.6 or later, or 5.1 "
        "or earlier"
    ),
    **dict.fromkeys(
        ("5.0", "5.1"), "transformers 5.0 and 5.1 number it by other rules: install 5.6 or later"
    ),
    "4.53": (
        "in the first releases of transformers 4.53 every frame takes a grid of its own, and every "
        "row begins at the first grid: install 4.53.2 or later"
    ),
}


def main(folder):
    table = {}
    releases = [path for path in Path(folder).iterdir() if (path / "transformers").is_dir()]
    for release in sorted(releases, key=lambda path: [*map(int, path.name.split("."))]):
        with TemporaryDirectory() as modules:
            linecache.clearcache()
            for model_type, cls in methods_of(release, modules):
                if "transformers" not in getattr(FAMILIES.get(model_type), "rules", ()):
                    continue
                entries = table.setdefault(model_type, {})
                code = fingerprint_of(cls)
                if code not in entries:
                    entries[code] = {**run(model_type, cls, release.name), "releases": []}
                entry = entries[code]
                if "rules" in entry and entry["releases"]:
                    rules = rules_of(model_type)[entry["rules"]]
                    assert difference(cls, model_type, rules) is None
                entry["releases"].append(release.name)
    text = json.dumps(table, indent=1)
    text = re.sub(r"\[[^\]]*\]", lambda found: " ".join(found[0].split()), text)
    TABLE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
