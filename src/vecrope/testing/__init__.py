"""Property tests for a function that computes M-RoPE positions: ours, or an upstream's own.

    @given(prompt=conversations(MRopeSpec.for_model("glm4v", convention="transformers")))
    def test_rope_index(prompt):
        assert_matches(model.get_rope_index, prompt)

`reference` is the loop that says what is right, `Prompt` one prompt, `assert_matches` the
comparison. For families with a rule of their own it is `own_rules` and `OwnPrompt`, for those with
audio `OmniPrompt`. The strategies `conversations` and `token_soup`, `own_prompts` and
`own_misfits`, `omni_conversations` and `omni_soup` need hypothesis, which
`pip install 'vecrope[testing]'` brings; nothing else here does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vecrope.testing import own_rules, reference
from vecrope.testing.matching import assert_matches
from vecrope.testing.own_prompt import OwnPrompt
from vecrope.testing.prompt import Prompt
from vecrope.testing.prompt_omni import OmniPrompt
from vecrope.testing.reference import Refusal

if TYPE_CHECKING:
    from vecrope.testing.own_strategies import own_misfits, own_prompts
    from vecrope.testing.strategies import conversations, token_soup
    from vecrope.testing.strategies_omni import omni_conversations, omni_soup

__all__ = [
    "OmniPrompt",
    "OwnPrompt",
    "Prompt",
    "Refusal",
    "assert_matches",
    "conversations",
    "omni_conversations",
    "omni_soup",
    "own_misfits",
    "own_prompts",
    "own_rules",
    "reference",
    "token_soup",
]

_STRATEGIES = {
    "conversations": "strategies",
    "omni_conversations": "strategies_omni",
    "omni_soup": "strategies_omni",
    "own_misfits": "own_strategies",
    "own_prompts": "own_strategies",
    "token_soup": "strategies",
}


def __getattr__(name: str) -> Any:
    if name not in _STRATEGIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_STRATEGIES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError(
            f"{__name__}.{name} needs hypothesis: pip install 'vecrope[testing]'"
        ) from error
    return getattr(module, name)
