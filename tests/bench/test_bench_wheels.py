import zipfile

import pytest

from bench.upstreams import (
    text_only_provider,
)
from bench.wheels import Wheel, load


@pytest.fixture(params=["wheel", "folder"])
def wheel(request, tmp_path):
    members = {
        "thing-1.2.dist-info/METADATA": "Name: thing",
        "thing/code.py": (
            "import nothing_like_this\n"
            "class Outer(nothing_like_this.Base):\n"
            "    @staticmethod\n"
            "    def double(x: nothing_like_this.Type):\n"
            "        return factor * x\n"
        ),
    }
    if request.param == "wheel":
        path = tmp_path / "thing-1.2-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
        return Wheel(path, "thing")
    for name, text in members.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Wheel(tmp_path, "thing")


def test_method_is_loaded_without_the_rest_of_its_file(wheel):
    assert wheel.version == "1.2"
    assert load(wheel, "thing/code.py", "Outer.double", factor=2)["double"](21) == 42


def test_wheel_without_the_definition_says_so(wheel):
    with pytest.raises(ValueError, match=r"thing/code\.py defines no Outer\.triple"):
        load(wheel, "thing/code.py", "Outer.triple")
    with pytest.raises(ValueError, match=r"has no file thing/other\.py"):
        load(wheel, "thing/other.py", "Outer")


def test_wheel_of_another_distribution_is_refused(wheel):
    with pytest.raises(ValueError, match="must hold sglang, it has no metadata of it"):
        text_only_provider(wheel.path)
