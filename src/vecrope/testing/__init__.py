"""Property tests for a function that computes M-RoPE positions: ours, or an upstream's own.

    @given(prompt=conversations(MRopeSpec.for_model("glm4v", convention="transformers")))
    def test_rope_index(prompt):
        assert_matches(model.get_rope_index, prompt)

`reference` is the loop that says what is right, `Prompt` one prompt of any family,
`assert_matches` the comparison. The strategies `conversations` and `token_soup` need hypothesis,
which `pip install 'vecrope[testing]'` brings; nothing else here does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vecrope.testing import reference
from vecrope.testing.matching import assert_matches
from vecrope.testing.prompt import Prompt
from vecrope.testing.reference import Refusal

if TYPE_CHECKING:
    from vecrope.testing.strategies import conversations, token_soup

__all__ = [
    "Prompt",
    "Refusal",
    "assert_matches",
    "conversations",
    "reference",
    "token_soup",
]


def __getattr__(name: str) -> Any:
    if name not in ("conversations", "token_soup"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.strategies")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"{__name__}.{name} needs hypothesis: pip install 'vecrope[testing]'"
        ) from error
    return getattr(module, name)
