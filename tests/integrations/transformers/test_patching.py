"""`patch`, `unpatch` and `patched`: what they take, what they change, and what they put back."""

import copy
import inspect
import pickle
import sys
import warnings
from functools import partial
from types import FunctionType, MethodType

import pytest
import torch
from tiny_models import LAYOUTS, spec_of_model, tiny_config, tiny_model
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from tests.integrations.transformers.modules import new_module
from vecrope.integrations.transformers import admission, patch, patched, unpatch
from vecrope.testing import Prompt

OWN = Qwen2VLModel.get_rope_index
PROMPT = Prompt.from_symbols(spec_of_model("qwen2_vl"), ["tIIt"], image_grid_thw=[[1, 2, 4]] * 2)


def is_patched(target):
    return hasattr(target.get_rope_index, "__wrapped__")


def refuses(module):
    """Say whether a check of vecrope's is made: transformers has none of its own."""
    try:
        module.get_rope_index(torch.zeros((1, 3), dtype=torch.int64), None)
    except TypeError as error:
        return "pass what the processor returns" in str(error)
    return False


@pytest.fixture(autouse=True)
def _all_is_put_back():
    yield
    assert Qwen2VLModel.get_rope_index is OWN


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_the_signature_and_the_name_are_those_of_transformers(model_type):
    module = tiny_model(model_type).model
    own = module.get_rope_index
    with patched(module):
        ours = module.get_rope_index
        assert inspect.signature(ours) == inspect.signature(own)
        assert (ours.__name__, ours.__doc__) == (own.__name__, own.__doc__)
        assert ours.__self__ is module
    assert module.get_rope_index == own


# Instances


def test_an_instance_and_no_other():
    module, other = new_module(), new_module()
    assert patch(module) is module
    assert refuses(module)
    assert not refuses(other)
    assert unpatch(module) is module
    assert not refuses(module)
    assert "get_rope_index" not in vars(module)


def test_the_module_within_a_model():
    model = tiny_model("qwen2_vl")
    with patched(model) as target:
        assert target is model
        assert refuses(model.model)
    assert not refuses(model.model)


def test_every_module_within_one_that_holds_several():
    modules = torch.nn.ModuleList([new_module(), torch.nn.Linear(1, 1), new_module()])
    patch(modules)
    assert refuses(modules[0])
    assert refuses(modules[2])
    unpatch(modules)
    assert not refuses(modules[0])
    assert not refuses(modules[2])


def test_nothing_is_patched_where_something_cannot_be():
    class Other(Qwen2VLModel):
        def get_rope_index(self, *args, **kwargs):
            return super().get_rope_index(*args, **kwargs)

    with torch.device("meta"):
        modules = torch.nn.ModuleList([new_module(), Other(tiny_config("qwen2_vl"))])
    with pytest.raises(ValueError, match="must be one of transformers"):
        patch(modules)
    assert not is_patched(modules[0])


def test_each_instance_reads_its_own_configuration():
    modules = [new_module(spatial_merge_size=merge) for merge in (1, 2)]
    arguments = {**PROMPT.arguments(), "image_grid_thw": torch.tensor([[1, 1, 2]])}
    for module, grid in zip(modules, ([1, 1, 2], [1, 2, 4]), strict=True):
        arguments["image_grid_thw"] = torch.tensor([grid])
        expected = module.get_rope_index(**arguments)
        for target in (module, Qwen2VLModel):
            with patched(target):
                assert all(map(torch.equal, module.get_rope_index(**arguments), expected))


def test_a_configuration_is_read_again_when_patched_again():
    module = patch(new_module())
    module.config.vision_config.spatial_merge_size = 1
    patch(module)
    arguments = {**PROMPT.arguments(), "image_grid_thw": torch.tensor([[1, 1, 2]])}
    ours = module.get_rope_index(**arguments)
    assert all(map(torch.equal, ours, unpatch(module).get_rope_index(**arguments)))


def test_a_copy_is_patched_for_itself():
    module = patch(new_module())
    twin = copy.deepcopy(module)
    assert refuses(twin)
    assert twin.get_rope_index.__self__ is twin
    unpatch(module)
    assert refuses(twin)
    unpatch(twin)


def test_a_pickled_model_is_not_patched():
    module = patch(new_module())
    assert not refuses(pickle.loads(pickle.dumps(module)))
    assert module.state_dict().keys() == new_module().state_dict().keys()


# Classes


def test_a_class_and_its_instances():
    module = new_module()
    assert patch(Qwen2VLModel) is Qwen2VLModel
    assert refuses(module)
    assert refuses(new_module())
    assert not refuses(tiny_model("qwen3_vl").model)
    assert unpatch(Qwen2VLModel) is Qwen2VLModel
    assert not refuses(module)


def test_a_class_that_inherits_the_method():
    class Inherits(Qwen2VLModel):
        pass

    patch(Inherits)
    assert is_patched(Inherits)
    assert not is_patched(Qwen2VLModel)
    unpatch(Inherits)
    assert "get_rope_index" not in vars(Inherits)


def test_an_instance_of_a_patched_class():
    module = new_module()
    with patched(Qwen2VLModel):
        with patched(module):
            assert refuses(module)
        assert refuses(module)
        with pytest.raises(ValueError, match="Qwen2VLModel is not patched"):
            unpatch(module)
    patch(module)
    with patched(Qwen2VLModel):
        unpatch(module)
        assert refuses(module)
    assert not refuses(module)


@pytest.mark.parametrize("target", [Qwen2VLModel, None], ids=["class", "instance"])
def test_patched_twice_it_is_unpatched_once(target):
    module = new_module()
    target = target or module
    patch(target)
    patch(target, validate=False)
    bad = {**PROMPT.arguments(), "image_grid_thw": torch.tensor([[1, 6, 6]])}
    module.get_rope_index(**bad)
    patch(target)
    with pytest.raises(ValueError, match="truncated"):
        module.get_rope_index(**bad)
    unpatch(target)
    assert not refuses(module)
    with pytest.raises(ValueError, match="is not patched"):
        unpatch(target)


@pytest.mark.parametrize("target", [Qwen2VLModel, None], ids=["class", "instance"])
def test_a_block_leaves_what_it_found(target):
    module = new_module()
    target = target or module
    patch(target)
    before = vars(target)["get_rope_index"]
    with patched(target, validate=False):
        assert vars(target)["get_rope_index"] is not before
    assert vars(target)["get_rope_index"] is before
    with pytest.raises(ZeroDivisionError), patched(target):
        _ = 1 / 0
    assert vars(target)["get_rope_index"] is before
    unpatch(target)


# Refusals


def wrong(
    self,
    input_ids,
    mm_token_type_ids,
    image_grid_thw=None,
    video_grid_thw=None,
    attention_mask=None,
    **kwargs,  # noqa: ARG001
):
    positions, deltas = OWN(
        self, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask
    )
    return positions + (video_grid_thw is not None), deltas


def right(
    self,
    input_ids,
    mm_token_type_ids,
    image_grid_thw=None,
    video_grid_thw=None,
    attention_mask=None,
    **kwargs,  # noqa: ARG001
):
    return OWN(self, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask)


def in_transformers(function, home=OWN.__module__):
    """Return a function that looks like one of a release that nobody has seen."""
    there = FunctionType(
        function.__code__,
        {**vars(sys.modules[OWN.__module__]), "OWN": OWN, "__name__": home},
        argdefs=function.__defaults__,
    )
    there.__module__ = home
    return there


def global_state():
    return (torch.get_rng_state().tolist(), torch.get_default_device(), torch.is_grad_enabled())


@pytest.mark.parametrize("home", [OWN.__module__, "transformers.modeling_of_a_mixin"])
def test_a_method_that_is_not_known_is_compared(monkeypatch, home):
    monkeypatch.setattr(admission, "_CHECKED", set())
    monkeypatch.setattr(Qwen2VLModel, "get_rope_index", in_transformers(right, home))
    module = new_module()
    with pytest.raises(RuntimeError, match="is not known to this vecrope"):
        patch(module, check="known")
    torch.set_default_device("meta")
    try:
        before = global_state()
        with pytest.warns(UserWarning, match="agreed with it on all prompts"):
            patch(module)
        assert global_state() == before
    finally:
        torch.set_default_device(None)
    assert refuses(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(new_module())  # once a process


def test_a_difference_is_refused_with_its_prompt(monkeypatch):
    monkeypatch.setattr(Qwen2VLModel, "get_rope_index", in_transformers(wrong))
    module = new_module()
    with pytest.raises(RuntimeError, match=r"position_ids differ: .* video_grid_thw=\[\["):
        patch(module)
    assert not is_patched(module)


def test_a_class_is_compared_at_its_first_call_and_not_in_a_graph(monkeypatch):
    monkeypatch.setattr(admission, "_CHECKED", set())
    monkeypatch.setattr(Qwen2VLModel, "get_rope_index", in_transformers(right))
    module = new_module()
    with patched(Qwen2VLModel, check="always"):
        with monkeypatch.context() as tracing:
            tracing.setattr(torch.compiler, "is_compiling", lambda: True)
            with pytest.raises(RuntimeError, match="patch the model, or call it once"):
                module.get_rope_index(**PROMPT.arguments())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.get_rope_index(**PROMPT.arguments())
        with monkeypatch.context() as tracing:
            tracing.setattr(torch.compiler, "is_compiling", lambda: True)
            new_module().get_rope_index(**PROMPT.arguments())  # of the same configuration


@pytest.mark.parametrize("make", [MethodType, partial], ids=["method", "callable"])
def test_what_is_on_an_instance_is_admitted_if_asked_for_and_put_back(make):
    module = new_module()
    module.get_rope_index = own = make(right, module)
    with pytest.raises(ValueError, match=r"must be one of transformers, got that of .*py:"):
        patch(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch(module, check="always")
    assert refuses(module)
    unpatch(module)
    assert vars(module)["get_rope_index"] is own
    module.get_rope_index = make(wrong, module)
    with pytest.raises(RuntimeError, match="differ"):
        patch(module, check="always")


@pytest.mark.parametrize("make", [lambda m: partial(right, m), lambda _: lambda *a: right(*a)])
def test_a_callable_on_an_instance_is_named_by_where_it_is_defined(make):
    module = new_module()
    module.get_rope_index = make(module)
    with pytest.raises(ValueError, match=r"got that of .*test_patching, .*test_patching.py:"):
        patch(module)


def test_an_argument_that_the_method_does_not_take():
    def narrow(
        self, input_ids, mm_token_type_ids, image_grid_thw=None, video_grid_thw=None,
        attention_mask=None,
    ):  # fmt: skip
        return OWN(
            self, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask
        )

    module = new_module()
    module.get_rope_index = MethodType(narrow, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch(module, check="always")
    with pytest.raises(TypeError, match="unexpected keyword argument 'pixel_values'"):
        module.get_rope_index(**PROMPT.arguments(), pixel_values=None)


def test_a_pickled_model_follows_its_class():
    module = pickle.loads(pickle.dumps(patch(new_module())))
    assert not refuses(module)
    with patched(Qwen2VLModel):
        assert refuses(module)
    assert not refuses(module)
    unpatch(patch(module))
    assert not refuses(module)


def test_a_patched_method_that_was_put_on_an_instance_by_hand():
    module = new_module()
    patch(Qwen2VLModel)
    module.get_rope_index = module.get_rope_index
    unpatch(Qwen2VLModel)
    unpatch(module)
    assert module.get_rope_index == MethodType(OWN, module)


def test_a_signature_that_is_not_known(monkeypatch):
    def get_rope_index(self, input_ids, image_grid_thw):
        raise NotImplementedError

    monkeypatch.setattr(Qwen2VLModel, "get_rope_index", in_transformers(get_rope_index))
    with pytest.raises(
        RuntimeError, match=r"must take \(input_ids, mm_token_type_ids, .*, got \(in"
    ):
        patch(Qwen2VLModel)
    monkeypatch.undo()
