"""The command line with its own conversation, of every family."""

# ruff: noqa: RUF001 - the multiplication sign is the right sign for a grid
import json
import sys

import pytest
from oracles import WITHOUT_DEFAULT, each_core

from tests.cli.prompts import CONFIG, DEMO_SEGMENTS, GLM, section, words
from vecrope.cli.demo import NAMES, conversation
from vecrope.cli.prompt import image_markers
from vecrope.families.registry import FAMILIES
from vecrope.spec import MRopeSpec


def without_times(out):
    return out[: out.index("\n  vecrope, eager")]


DEMO_POSITIONS = """\
          text                       image 0
token     0    1    2    3    4      5    6    7 …   40   41   42 …  975  976
          t    t    t    t    <      I    I    I …    I    I    I …    I    I
    t     0    1    2    3    4      5    5    5 …    5    5    5 …    5    5
    h     0    1    2    3    4      5    5    5 …    5    6    6 …   31   31
    w     0    1    2    3    4      5    6    7 …   40    5    6 …   39   40
"""


def test_the_conversation_is_laid_out_and_confirmed(run):
    code, out, err = run("--convention", "sglang")
    assert (code, err) == (0, "")
    assert out.startswith("A GLM-4.1V conversation: a 1008 × 756 picture, a 672 × 448 clip of 8")
    assert "\nmodel glm4v, convention sglang, 1 row of 2559 tokens\n" in out
    assert f"\n\n{DEMO_SEGMENTS}\n" in out
    assert "\nrow 0: rope_delta -2376: the token after these 2559 gets position 183\n" in out
    assert f"\n\n{DEMO_POSITIONS}\n" in out
    assert (
        "\nConfirmed: all 7677 positions and every rope_delta equal those of the loop\n"
        "in vecrope.testing.reference, which is written to be read, not to be fast.\n"
    ) in out
    *_, library, loop, ratio = out.splitlines()
    for line, name in ((library, "vecrope, eager, checks included"), (loop, "the loop, plain Py")):
        assert line.startswith(f"  {name}")
        value, unit, *rest = words(line)[-6:]
        assert float(value) > 0
        assert unit in ("µs", "ms")
        assert rest[:2] == ["median", "of"]
    assert words(ratio)[:4] == ["the", "loop", "/", "vecrope"]
    assert ratio.endswith("   CPU time of one thread")


NO_VIDEOS = [("cohere_compass", "vllm")]


@pytest.mark.parametrize("model", GLM)
def test_the_conversation_is_in_the_layout_of_glms_chat_template(model):
    spec = MRopeSpec.for_model(model, convention="sglang")
    begin, end = image_markers(spec)
    tokens = conversation(spec).input_ids[0].tolist()
    opening = [begin - 8, begin - 6, begin - 3, 198, begin]
    assert tokens[:977] == [*opening, *[spec.image_token_id] * 972]
    assert tokens[977] == end
    frame = [begin, *[spec.image_token_id] * 384, end]
    video = tokens[tokens.index(spec.video_start_token_id) + 1 :]
    video = video[: video.index(spec.video_end_token_id)]
    assert len(video) == 4 * 387
    assert video == [token for at in range(386, len(video), 387) for token in (*frame, video[at])]
    assert tokens[-2:] == [begin - 2, 198]
    assert tokens.count(spec.image_token_id) == 972 + 4 * 384


def test_no_line_is_too_long_or_ends_in_a_space(run):
    for line in run()[1].splitlines():
        assert len(line) <= 80
        assert line == line.rstrip()


@each_core
def test_a_conversation_of_every_family_with_default_ids_is_confirmed(run, model_type, convention):
    code, out, err = run("--model", model_type, "--convention", convention)
    if (model_type, convention) in WITHOUT_DEFAULT:
        assert code == 2
        assert f"error: argument --model: {model_type!r} has no default " in err
        assert err.endswith("; here, --config CONFIG.json\n")
    elif model_type not in NAMES:
        assert code == 2
        reasons = ("no conversation can be laid out for ", "has no placeholders under convention ")
        assert any(reason in err for reason in reasons)
    else:
        assert (code, err) == (0, "")
        clip = ", a 672 × 448 clip of 8 frames" * ((model_type, convention) not in NO_VIDEOS)
        title = " ".join(out.splitlines()[:2])
        article = "An" if NAMES[model_type][0] in "AEIO" else "A"
        assert title.startswith(
            f"{article} {NAMES[model_type]} conversation: a 1008 × 756 picture{clip}"
        )
        assert "\nConfirmed: all " in out
        assert "\n  0      " in out


@pytest.mark.parametrize(
    ("model", "video"),
    [
        ("qwen2_vl", ["<" + "V" * 1536 + ">"]),
        ("qwen3_vl", ["t<" + "V" * 384 + ">"] * 4),
        ("cosmos3_edge", ["t<" + "V" * 384 + ">"] * 4),
    ],
)
def test_a_clip_of_another_family_is_laid_out_as_its_processor_does(model, video):
    spec = MRopeSpec.for_model(model, convention="transformers")
    start, end = image_markers(spec)
    symbols = {spec.image_token_id: "I", spec.video_token_id: "V", start: "<", end: ">"}
    tokens = conversation(spec).input_ids[0].tolist()
    row = "".join(symbols.get(token, "t") for token in tokens)
    assert row == f"t<{'I' * 972}>{'t' * (7 + 1 + 12 + 1)}{''.join(video)}{'t' * (6 + 1)}"


def test_a_clip_of_one_block_is_laid_out_between_its_markers():
    spec = MRopeSpec.for_model("ernie4_5_vl_moe", convention="sglang")
    prompt = conversation(spec)
    tokens = prompt.input_ids[0].tolist()
    start = tokens.index(spec.video_start_token_id)
    assert tokens[start + 1 : start + 1537] == [spec.image_token_id] * 1536
    assert tokens[start + 1537] == spec.video_end_token_id
    assert prompt.video_grid_thw.tolist() == [[8, 32, 48]]


def test_a_family_with_a_rule_of_its_own_is_not_confirmed(run_prompt, tmp_path):
    config = {
        "model_type": "isaac",
        "image_token_id": 5,
        "vision_config": {"pixel_shuffle_scale_factor": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = run_prompt(
        *("--config", "config.json", "--convention", "vllm"), input_ids=[1, 2]
    )
    assert code == 2
    assert "error: prompt.json: 'isaac' is numbered by a rule of its own under convention" in err


def test_a_family_without_a_layout_needs_a_prompt(run, tmp_path):
    path = tmp_path / "config.json"
    ids = {"image_token_id": 5, "video_token_id": 6}
    config = {"model_type": "keye", **ids, "vision_config": {"spatial_merge_size": 2}}
    path.write_text(json.dumps(config))
    code, _, err = run("--config", path, "--convention", "vllm")
    assert code == 2
    assert "error: no conversation can be laid out for 'keye': use --input" in err


def test_a_block_is_shown_with_its_seconds(run_prompt):
    start, video, end = 151652, 151656, 151653
    code, out, err = run_prompt(
        *("--model", "qwen2_5_vl"),
        input_ids=[7, start, video, video, end, 8],
        attention_mask=[0, 1, 1, 1, 1, 1],
        video_grid_thw=[[2, 2, 2]],
        second_per_grid_ts=[0.5],
    )
    assert (code, err) == (0, "")
    assert section(out, "row 0:", "Confirmed") == [
        "row 0: rope_delta 1: the token after these 6 gets position 7",
        "",
        "       text   video 0   text",
        "token  0 1    2 3       4 5",
        "       t <    V V       > t",
        "    t  0 1    2 4       5 6",
        "    h  0 1    2 2       5 6",
        "    w  0 1    2 2       5 6",
    ]


@pytest.mark.parametrize("model", GLM)
def test_a_models_own_configuration_gives_what_its_name_gives(run, tmp_path, model):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model).to_dict()
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config, default=str))
    assert image_markers(MRopeSpec.from_config(config, convention="sglang")) == (
        config["image_start_token_id"],
        config["image_end_token_id"],
    )
    by_name, by_config = run("--model", model), run("--config", path)
    assert by_name[0] == by_config[0] == 0
    assert f"\nmodel {model}, convention transformers" in by_name[1]
    assert without_times(by_name[1]) == without_times(by_config[1])


def test_the_configurations_merge_size_is_used(run, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "vision_config": {"spatial_merge_size": 4}}))
    code, out, _ = run("--config", path)
    assert code == 0
    assert "a 2016 × 1512 picture" in out
    assert DEMO_SEGMENTS in out


MODULE = """
import vecrope
names = ("image_token_id", "video_token_id", "spatial_merge_size")
rule = dict(marker_rule="none", separate_frames=True, span_rule="thw")
vecrope.register_family(
    "invented_vl",
    rules={"vllm": {**rule, "padding_value": 0, "delta_length": "valid"}},
    paths=dict(zip(names, names)),
    defaults=dict(zip(names, (9, 10, 2))),
)
"""


def test_a_family_that_an_imported_module_registers_is_shown(run_prompt, tmp_path, monkeypatch):
    (tmp_path / "invented_module.py").write_text(MODULE)
    monkeypatch.setattr("sys.path", [*sys.path])
    arguments = ("--import", "invented_module", "--model", "invented_vl", "--convention", "vllm")
    try:
        code, out, _ = run_prompt(*arguments, input_ids=[1, 9, 9, 3], image_grid_thw=[[1, 2, 4]])
    finally:
        FAMILIES.pop("invented_vl", None)
    assert code == 0
    assert "model invented_vl, convention vllm, 1 row of 4 tokens" in out
