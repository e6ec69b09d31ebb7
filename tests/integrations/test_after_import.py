"""Modules are seen when they are imported, and only while imports are watched."""

import importlib
import importlib.util
import sys

import pytest

from vecrope.integrations.after_import import AfterImport


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("seen_one", "seen_two", "unseen"):
        (tmp_path / f"{name}.py").write_text("value = 1\n")
    importlib.invalidate_caches()
    yield
    for name in ("seen_one", "seen_two", "unseen"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("files")
def test_modules_are_seen_once_executed_whether_imported_before_or_later():
    seen = []
    watch = AfterImport(
        ("seen_one", "seen_two", "missing"), lambda each: seen.append((each.__name__, each.value))
    )
    importlib.import_module("seen_one")
    watch.start()
    try:
        assert watch.is_watching
        assert seen == [("seen_one", 1)]
        importlib.import_module("unseen")
        importlib.import_module("seen_two")
        assert seen[1:] == [("seen_two", 1)]
        with pytest.raises(ModuleNotFoundError, match="missing"):
            importlib.import_module("missing")
    finally:
        watch.stop()
    assert not watch.is_watching
    watch.stop()
    del sys.modules["seen_two"]
    importlib.import_module("seen_two")
    assert len(seen) == 2


@pytest.mark.usefixtures("files")
def test_a_module_that_was_found_before_and_is_executed_after_the_watch_is_not_seen():
    seen = []
    watch = AfterImport(("seen_one",), seen.append)
    watch.start()
    try:
        found = importlib.util.find_spec("seen_one")
    finally:
        watch.stop()
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert module.value == 1
    assert not seen


class Finder:
    """Finds modules that are in no file, by one loader, as an editable installation may."""

    def find_spec(self, fullname, path=None, target=None):  # noqa: ARG002
        return (
            importlib.util.spec_from_loader(fullname, self)
            if fullname.startswith("made_")
            else None
        )

    def create_module(self, spec):  # noqa: ARG002
        return None

    def exec_module(self, module):
        module.value = 2


def test_modules_of_other_finders_are_seen(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    seen = []
    watch = AfterImport(("made_one", "made_two"), lambda each: seen.append(each.__name__))
    watch.start()
    for name in ("made_two", "made_other", "made_one"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        assert importlib.import_module(name).value == 2
    watch.stop()
    # Each once, although the loader is that of both.
    assert seen == ["made_two", "made_one"]
