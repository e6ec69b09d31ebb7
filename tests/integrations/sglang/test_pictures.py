"""Requests with images alone, through the processor's module, and the fallback behind it."""

import ast
import importlib
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from own_support import SGLANG_WHEEL, needs_sglang
from support import assert_same

from bench.wheels import Wheel
from vecrope import MRopeSpec, get_rope_index
from vecrope.integrations import sglang as ours
from vecrope.integrations.sglang import installing, pictures

NAME = f"{pictures.OWNER}.{pictures.METHOD}"
HOME = "sglang.srt.layers.rotary_embedding"
STAND_IN = f"""
import torch
class {pictures.OWNER}:
    @staticmethod
    def _as_grid_batch(value):
        return value
    def {pictures.METHOD}(self, input_len, mm_items, dtype, device):
        return "SGLang's own"
"""


class Item(SimpleNamespace):
    def is_image(self):
        return self.modality == "image"

    def is_modality(self, modality):
        return self.modality == modality


def image(first, grid, tokens=None, **changes):
    t, h, w = grid
    last = first + (t * (h // 2) * (w // 2) if tokens is None else tokens) - 1
    data = {"image_grid_thw": torch.tensor([grid])}
    return Item(
        **{
            "modality": "image",
            "offsets": [(first, last)],
            "model_specific_data": data,
            **changes,
        }
    )


def methods(source, owner, *names):
    """Return the text of a class with some of its methods, decorators included."""
    lines = source.splitlines()
    (cls,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == owner)
    found = {node.name: node for node in cls.body if isinstance(node, ast.FunctionDef)}
    parts = [f"class {owner}:"]
    for name in names:
        node = found[name]
        start = min(each.lineno for each in (node, *node.decorator_list))
        parts += lines[start - 1 : node.end_lineno]
    return "\n".join(parts) + "\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return what writes the modules of a package `sglang` that is then imported from files."""
    monkeypatch.syspath_prepend(tmp_path)

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
            del sys.modules[name]

    def write(**sources):
        for name, source in sources.items():
            path = tmp_path.joinpath("sglang", *name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            for folder in path.parents[: len(path.relative_to(tmp_path).parts) - 1]:
                folder.joinpath("__init__.py").touch()
        importlib.invalidate_caches()

    forget()
    yield write
    ours.uninstall()
    forget()


@pytest.fixture
def stand_in(write, monkeypatch):
    write(
        srt__multimodal__processors__qwen_vl=STAND_IN,
        srt__layers__rotary_embedding__mrope_rope_index="",
    )
    monkeypatch.setattr(pictures, "MODEL_TYPES", {"known": frozenset({"qwen3_vl"})})
    monkeypatch.setattr(installing, "fingerprint", lambda *_: "known")


def processor(module=None, model_type="qwen3_vl"):
    module = module or importlib.import_module(pictures.MODULE)
    found = getattr(module, pictures.OWNER)()
    found.model_type, found._spatial_merge_size, found._tokens_per_second = model_type, 2, None
    found.mm_tokens = SimpleNamespace(image_token_id=8, video_token_id=9)
    found.vision_start_token_id = 7
    return found


def ask(found, input_len, items, device="cpu"):
    arguments = {"dtype": torch.int64, "device": torch.device(device)}
    return getattr(found, pictures.METHOD)(input_len=input_len, mm_items=items, **arguments)


@pytest.mark.usefixtures("stand_in")
def test_the_method_is_replaced_when_its_module_is_imported_and_put_back(caplog):
    with caplog.at_level(logging.INFO):
        assert ours.install().later == (NAME,)
        found = processor()
        assert f"answers for SGLang's {NAME}." in caplog.records[-1].message
    again = ours.install()
    assert (again.replaced, again.later) == ((NAME,), ())
    items = [image(5, (1, 4, 2)), image(1, (1, 2, 6))]
    spec = MRopeSpec.for_model(
        "qwen3_vl",
        convention="sglang",
        image_token_id=8,
        video_token_id=9,
        vision_start_token_id=7,
    )
    ids = torch.tensor([[7, 8, 8, 8, 7, 8, 8, 1, 1]])
    grids = torch.tensor([[1, 2, 6], [1, 4, 2]])
    assert_same(ask(found, 9, items), get_rope_index(ids, spec, image_grid_thw=grids))
    for case in (
        [],
        [*items, Item(modality="video", offsets=[(8, 8)])],
        [image(1, (1, 2, 6), tokens=4)],
        [image(1, (1, 2, 6)), image(3, (1, 2, 2))],
        [image(7, (1, 2, 6))],
        [image(1, (1, 2, 6), offsets=None)],
        [image(1, (1, 2, 6), offsets=[(1, 1), (3, 4)])],
        [image(1, (1, 2, 6), model_specific_data={})],
        [image(1, (0, 2, 6))],
    ):
        assert ask(found, 9, case) == "SGLang's own"
    assert ask(found, 9, items, device="meta") == "SGLang's own"
    assert ask(processor(model_type="qwen2_vl"), 9, items) == "SGLang's own"
    older = processor()
    del older._spatial_merge_size
    older.hf_config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    assert_same(ask(older, 9, items), ask(found, 9, items))
    ours.uninstall()
    assert ask(found, 9, items) == "SGLang's own"


@pytest.mark.usefixtures("stand_in")
def test_a_method_that_is_not_known_or_missing_is_left(monkeypatch, write):
    monkeypatch.setattr(pictures, "MODEL_TYPES", {})
    ours.install()
    assert ask(processor(), 9, [image(1, (1, 2, 6))]) == "SGLang's own"
    assert "none of those" in ours.install().left[NAME]
    write(srt__multimodal__processors__qwen_vl="")
    del sys.modules[pictures.MODULE]
    assert ours.install().later == (NAME,)
    importlib.import_module(pictures.MODULE)
    assert "has none" in ours.install().left[NAME]


# With the wheel's own code

MEMBER = pictures.MODULE.replace(".", "/") + ".py"
HEADER = f"""
from __future__ import annotations
import torch
from {HOME}.mrope import MRotaryEmbedding
class Modality:
    IMAGE, VIDEO = "image", "video"
"""


@pytest.fixture
def real(write):
    wheel = Wheel(Path(SGLANG_WHEEL), "sglang")
    folder = HOME.replace(".", "/")
    names = ("_as_grid_batch", pictures.METHOD, "compute_mrope_positions", "_concat_mm_item_grid")
    write(
        srt__multimodal__processors__qwen_vl=HEADER
        + methods(wheel.source(MEMBER), pictures.OWNER, *names),
        srt__layers__rotary_embedding__mrope_rope_index=wheel.source(
            f"{folder}/mrope_rope_index.py"
        ),
        srt__layers__rotary_embedding__mrope=methods(
            wheel.source(f"{folder}/mrope.py"), "MRotaryEmbedding", "get_rope_index"
        ),
    )


def positions_of(found, ids, items):
    """Answer as the processor does: by the images' places, or by the ids."""
    answer = ask(found, len(ids), items)
    return found.compute_mrope_positions(ids, items) if answer is None else answer


@needs_sglang
@pytest.mark.usefixtures("real")
def test_the_wheels_method_is_known_and_answers_alike():
    ours.install()
    found = processor()
    method = getattr(type(found), pictures.METHOD)
    own = method.__wrapped__
    sides = st.integers(1, 9)
    piece = st.tuples(st.integers(0, 3), st.integers(1, 2), sides, sides, st.integers(0, 40))

    @given(st.lists(piece, max_size=5), st.integers(0, 2), st.randoms())
    def check(pieces, end, random):
        items, at = [], 0
        for gap, *grid, fault in pieces:
            tokens = grid[0] * (grid[1] // 2) * (grid[2] // 2)
            at += gap
            items.append(image(at, grid, tokens + (fault == 40)))
            at += tokens - (fault == 39)
        random.shuffle(items)
        arguments = (at + end, items, torch.int64, torch.device("cpu"))
        answers = [outcome(each, found, arguments) for each in (method, own)]
        if isinstance(answers[1], tuple):
            assert_same(*answers)
        else:
            assert repr(answers[0]) == repr(answers[1])

    check()


def outcome(function, *arguments):
    try:
        return function(arguments[0], *arguments[1])
    except Exception as error:
        return error


@needs_sglang
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_what_is_refused_the_processor_gets_from_sglang(model_type, caplog):
    module = importlib.import_module(pictures.MODULE)
    found = processor(module, model_type)
    # A second image without a start, in one item with two places, which sends it to the ids.
    ids = [7, 8, 8, 1, 8, 8, 1]
    data = {"image_grid_thw": torch.tensor([[1, 2, 4], [1, 2, 4]])}
    item = Item(modality="image", offsets=[(1, 2), (4, 5)], model_specific_data=data)
    expected = positions_of(found, ids, [item])
    ours.install()
    for _ in range(2):
        assert_same(positions_of(found, ids, [item]), expected)
    assert sum(ours.refusals().values()) == 2
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert "SGLang's own function answers" in record.message
    ours.install(strict=True)
    with pytest.raises(ValueError, match="image"):
        positions_of(found, ids, [item])
