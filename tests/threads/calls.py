"""Calls of everything that the library computes on a CPU, with small prompts of every family."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import omni_support
import own_support
import torch
from hypothesis import HealthCheck, Phase, given, settings
from oracles import CORE, spec_of
from packings import packings

from bench import sglang_requests
from bench.mixed import FAMILIES as MIXED
from bench.providers import (
    vecrope_concatenate_provider,
    vecrope_placeholders_provider,
    vecrope_plan_provider,
    vecrope_provider,
    vecrope_replace_provider,
    vecrope_unchecked_provider,
)
from bench.requests import rows
from bench.workloads import make_workload
from tests.integrations.sglang import calls as sglang_calls
from tests.integrations.sglang.glm4v_calls import SPEC as SGLANG_GLM4V
from tests.integrations.sglang.glm4v_calls import rope_index as sglang_glm4v
from tests.integrations.transformers.answers import RULES, module_of, spec_of_model
from tests.integrations.vllm.models import has_other_audio, omni_model
from vecrope import (
    collate,
    concatenate_plans,
    get_decode_position_ids,
    get_rope_index,
    plan_rope_index,
    positions_of_groups,
    sequence_ids_from_position_ids,
)
from vecrope.integrations import sglang
from vecrope.integrations.sglang import pictures
from vecrope.integrations.transformers import patch
from vecrope.integrations.transformers.calls_by_ids import (
    by_ids,
    by_ids_and_seconds,
    by_optional_types,
)
from vecrope.integrations.vllm.own_rules import answer_minicpmv4_7, answer_omni
from vecrope.testing import Prompt, conversations, token_soup

PICTURES = [(40, 1, 14, 14), (300, 1, 10, 14)]


def drawn(strategy, number=3):
    """Return some examples of a strategy, always the same."""
    examples = []

    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example):
        examples.append(example)

    draw()
    return examples


def small_calls():
    """Yield a name and a function, of everything."""
    for part in (
        *(_families, _own_families, _plans, _training, _sglang, _vllm, _transformers),
        *(_old_transformers, _requests),
    ):
        for name, function in part():
            yield f"{part.__name__.strip('_')}: {name}", function
    yield from _workloads(("mixed", 400))


def larger_calls():
    """Yield calls with thousands of tokens, which may start threads where these pay."""
    yield from _workloads(("mixed", 4000), ("mixed-batch", 1000), ("mixed-packed", 1000))
    for model_type, convention in (("glm4v", "sglang"), ("qwen2_5_vl", "transformers")):
        workload = make_workload(f"mixed-packed-{model_type}", 1000)
        given = {"cu_seqlens": workload.cu_seqlens, "image_grid_thw": workload.image_grid_thw}
        given["video_grid_thw"] = workload.video_grid_thw
        given["second_per_grid_ts"] = workload.second_per_grid_ts
        spec = spec_of(model_type, convention)
        yield f"static {model_type}", _call(workload.input_ids[0], spec, form="static", **given)

    for make, name in (
        (vecrope_provider, "step"),
        (vecrope_unchecked_provider, "step-decode"),
        (vecrope_concatenate_provider, "step"),
        (vecrope_replace_provider, "step"),
    ):
        yield f"{make.__name__} {name}", make().prepare(make_workload(name, 4096))


def _call(input_ids, spec, **arguments):
    if spec.video_time != "seconds":
        arguments.pop("second_per_grid_ts", None)
    return partial(get_rope_index, input_ids, spec, **arguments)


def _families():
    for model_type, convention in CORE:
        spec = spec_of(model_type, convention)
        for prompt in drawn(conversations(spec) | token_soup(spec, touching=True)):
            arguments = prompt.arguments()
            for form in ("eager", "static"):
                yield (
                    f"{spec.model_type} {form}",
                    partial(get_rope_index, spec=spec, form=form, **arguments),
                )
            plan = plan_rope_index(spec=spec, **arguments)
            yield f"plan of {spec.model_type}", partial(plan_rope_index, spec=spec, **arguments)
            yield f"positions of a plan of {spec.model_type}", plan.position_ids


def _own_prompts():
    for spec in own_support.SPECS.values():
        yield from drawn(conversations(spec))
    for model_type, convention in omni_support.OMNI:
        yield from drawn(conversations(omni_support.spec_of(model_type, convention)))
    for convention in ("transformers", "sglang", "vllm"):
        yield from drawn(conversations(own_support.minicpm_spec(convention)))


def _own_families():
    for prompt in _own_prompts():
        arguments = _tensors(prompt)
        yield prompt.spec.model_type, partial(get_rope_index, spec=prompt.spec, **arguments)
        plan = plan_rope_index(spec=prompt.spec, **arguments)
        yield (
            f"plan of {prompt.spec.model_type}",
            partial(plan_rope_index, spec=prompt.spec, **arguments),
        )
        yield f"positions of a plan of {prompt.spec.model_type}", plan.position_ids


def _tensors(prompt):
    """Return a prompt's arguments, of which some families' are lists."""
    return {
        name: torch.tensor(value) if isinstance(value, list) else value
        for name, value in prompt.arguments().items()
    }


def _plans():
    for model_type in ("glm4v", "qwen2_5_vl", "qwen3_vl"):
        spec = spec_of(model_type, "sglang")
        for prompt in drawn(conversations(spec)):
            plan = plan_rope_index(spec=spec, **prompt.arguments())
            rows, width = prompt.input_ids.shape
            half = width // 2
            yield "join", partial(concatenate_plans, [plan, plan])
            yield "slice", partial(plan.slice, half, width)
            yield "shard", partial(plan.shard, 0, 2, text_positions=True, pad_to_multiple_of=2)
            yield "decode", partial(plan.decode, 4)
            yield "step", partial(plan.step, [half] * rows, [width - half] * rows)
    glm_image = own_support.SPECS["glm_image, transformers"]
    for prompt in drawn(conversations(glm_image)):
        yield (
            "generated images",
            partial(get_decode_position_ids, spec=glm_image, **_tensors(prompt)),
        )


def _training():
    spec = spec_of("qwen2_5_vl", "transformers")
    for packing in drawn(packings(spec, hostile=False)):
        arguments = packing.arguments()
        yield (
            "packed rows",
            partial(get_rope_index, packing.input_ids, spec, text_positions=True, **arguments),
        )
    text = torch.tensor([[0, 1, 2, 0, 1, 0]])
    yield "read off positions", partial(sequence_ids_from_position_ids, text)
    image = spec.image_token_id
    sample = {"input_ids": [7, image, image, 8], "image_grid_thw": [[1, 2, 4]]}
    linear = spec_of("qwen3_5", "transformers")
    of_linear = {**sample, "input_ids": [7, linear.image_token_id, linear.image_token_id, 8]}
    for name, own, samples in (("collate", spec, sample), ("seq_idx", linear, of_linear)):
        for packed in (False, True):
            yield (
                name,
                partial(
                    collate, [samples] * 3, own, pad_token_id=0, packed=packed, text_positions=True
                ),
            )
    omni = omni_support.spec_of("qwen3_omni_moe", "transformers")
    sound = {
        "input_ids": [7, omni.own_rule.audio_start_token_id, omni.own_rule.audio_token_id, 8],
        "feature_attention_mask": torch.ones((1, 8), dtype=torch.int64),
    }
    yield "collate audio", partial(collate, [sound] * 3, omni, pad_token_id=0, packed=True)


def _sglang():
    for model_type in sglang_calls.FAMILIES:
        for prompt in drawn(conversations(sglang_calls.spec_for(model_type))):
            yield model_type, partial(sglang_calls.call, prompt)
    for prompt in drawn(conversations(omni_support.spec_of("qwen3_omni_moe", "sglang"))):
        yield "omni", partial(sglang_calls.call, prompt)
    for prompt in drawn(conversations(SGLANG_GLM4V)):
        yield "glm4v", partial(sglang_glm4v, **prompt.arguments())
    left_over = sglang_calls.prompt_of("qwen3_vl", "t<It", image_grid_thw=[[1, 2, 2], [1, 2, 2]])
    yield "left-over grids", partial(sglang_calls.call, left_over)


def _requests():
    """Yield SGLang's requests of so many tokens that their positions are more than a grain."""
    # Its method of SGLang's own, which takes no arguments, cannot answer.
    methods = {pictures.METHOD: lambda: None, "_as_grid_batch": staticmethod(lambda grids: grids)}
    processor = sglang_requests.processor_of(methods)
    for model_type, function in sglang_requests.FUNCTIONS.items():
        if model_type == "qwen3_omni_moe":
            continue
        for name, row in rows(model_type, 16000, "sglang"):
            call = sglang_requests.call_by_ids(getattr(sglang, function), row)
            yield f"{model_type} {name}", call
            if model_type == "qwen3_vl" and row.images:
                yield f"places of {name}", sglang_requests.calls_by_places(processor, row)[0]


def _vllm():
    yield "two pictures", partial(positions_of_groups, 847, PICTURES)
    yield "frames", partial(positions_of_groups, 900, [(9 * at, 1, 2, 4) for at in range(100)])
    yield "block", partial(positions_of_groups, 900, [(40, 8, 4, 4, 2.5)])
    for model_type in ("qwen2_5_omni", "qwen3_omni_moe"):
        spec = omni_support.spec_of(model_type, "vllm")
        for prompt in drawn(conversations(spec, max_rows=1)):
            single = next(omni_support.rows_of(prompt))
            if has_other_audio(single):
                continue
            tokens = single.input_ids[0].tolist()
            features = omni_support.vllm_features(single)
            yield model_type, partial(answer_omni, model_type, omni_model(spec), tokens, features)
    canvas = SimpleNamespace(_uses_canvas_mrope=False)
    yield "minicpmv4_7", partial(answer_minicpmv4_7, canvas, [1, 2, 3], [])


def _transformers():
    for model_type in RULES:
        module = patch(module_of(model_type))
        for prompt in drawn(conversations(spec_of_model(model_type))):
            yield model_type, partial(module.get_rope_index, **prompt.arguments())


def _old_transformers():
    """The signatures of 4.49 to 5.1, with frames, whose markers are looked for."""
    for model_type, method in (
        ("qwen3_vl", by_ids),
        ("qwen2_5_vl", by_ids_and_seconds),
        ("ernie4_5_vl_moe", by_optional_types),
    ):
        spec = spec_of(model_type, "transformers")
        start = int(Prompt.from_symbols(spec, ["<"]).input_ids)
        spec = replace(spec, vision_start_token_id=start)
        frames = "t<VV>t<VV>t" if spec.separate_frames else "t<VVVV>t"
        prompt = Prompt.from_symbols(
            spec,
            [f"t<II>{frames}"],
            image_grid_thw=[[1, 2, 4]],
            video_grid_thw=[[2 * spec.temporal_merge_size, 2, 4]],
        )
        given = {
            name: getattr(prompt, name)
            for name in ("input_ids", "image_grid_thw", "video_grid_thw")
        }
        if method is by_optional_types:
            given["mm_token_type_ids"] = prompt.mm_token_type_ids
        yield model_type, partial(method, None, spec, True, **given)
        text = {"input_ids": torch.tensor([[7, 8]]), "attention_mask": torch.tensor([[1, 0]])}
        yield f"text of {model_type}", partial(method, None, spec, True, **text)


def _workloads(*sizes):
    for family in MIXED:
        for name, seq_len in sizes:
            workload = make_workload(f"{name}-{family}", seq_len)
            yield f"{name}-{family} {seq_len}", vecrope_provider().prepare(workload)
            if name == "mixed":
                for make in (vecrope_placeholders_provider, vecrope_plan_provider):
                    yield f"{make.__name__} {family}", make().prepare(workload)
