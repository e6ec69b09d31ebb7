import pytest


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # So that a row of a few tokens has several blocks, and these several chunks.
    monkeypatch.setattr("vecrope.forms.triton.constants.BLOCK", 8)
    monkeypatch.setattr("vecrope.forms.triton.constants.CHUNK", 4)
