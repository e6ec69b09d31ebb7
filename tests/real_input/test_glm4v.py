"""Real input: pictures and clips through transformers' own GLM-4V processor and model.

The chat template rendering, the picture processor, the sampling, sizing and patching of frames, the
timestamps, the expansion of placeholders and the token types are transformers' code, and so are the
model and its generation. Two things are stand-ins, because torchvision may be absent: `TorchOnly`
supplies with torch the three pixel operations that a video processor takes from torchvision, and
`_Processor` skips a type check that needs a class which transformers exports with torchvision only.
"""

import pytest
import torch
from real_support import TorchOnly, clip, make_tokenizer, picture
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vProcessor,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

import vecrope

# Said by NumPy 2 where transformers turns rows of a tensor into arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MARKERS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}<|{{ message.role }}|>
{% for part in message.content %}
{%- if part.type == "image" %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == "video" %}<|begin_of_video|><|video|><|end_of_video|>
{%- else %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
CLIP_FPS = 4
NEW_TOKENS = 8


class _ClipProcessor(Glm4vVideoProcessor, TorchOnly):
    pass


class _Processor(Glm4vProcessor):
    def check_argument_for_proper_class(self, argument_name, argument):
        pass


def turn(role, *parts):
    content = []
    for part in parts:
        kind = "text" if isinstance(part, str) else {3: "image", 4: "video"}[part.ndim]
        content.append({"type": kind, kind: part})
    return {"role": role, "content": content}


WIDE, TALL, SMALL = picture(100, 150), picture(190, 70), picture(40, 40)
LONG, SHORT = clip(11, 60, 90), clip(4, 84, 56)
CONVERSATIONS = {
    "images": [
        [turn("user", WIDE, "Describe the picture.")],
        [turn("user", "Hello.")],
        [
            turn("user", "Is this ", TALL, SMALL, " smaller?"),
            turn("assistant", "No."),
            turn("user", "And this? ", WIDE),
        ],
    ],
    "clips": [
        [turn("user", "What happens in ", LONG, "?")],
        [turn("user", SHORT, LONG, "Which clip is longer?"), turn("assistant", "The second.")],
        [turn("system", "Be brief."), turn("user", "Hello.")],
    ],
    "images and clips": [
        [turn("user", WIDE, "Describe the picture.")],
        [turn("user", "Is it in ", SHORT, TALL, LONG, "?")],
        [turn("user", "Hello.")],
        [turn("user", LONG), turn("assistant", "A disc."), turn("user", SMALL, " Like this?")],
    ],
}


@pytest.fixture(scope="module")
def processor():
    fast = make_tokenizer(["[gMASK]", "<sop>", *ROLES, *MARKERS.values()])
    return _Processor(Glm4vImageProcessorPil(), fast, _ClipProcessor(), chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def model(processor):
    tokenizer = processor.tokenizer
    config = Glm4vConfig(
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in MARKERS.items()},
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.3,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 32,
            "out_hidden_size": 64,
            "initializer_range": 0.3,
            "image_size": 112,
        },
    )
    torch.manual_seed(0)
    return Glm4vForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def prepare(processor):
    def prepare(kind, padding_side="left"):
        conversations = CONVERSATIONS[kind]
        parts = [part for turns in conversations for turn in turns for part in turn["content"]]
        clips = [part["video"] for part in parts if part["type"] == "video"]
        processor.tokenizer.padding_side = padding_side
        return processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={
                "padding": True,
                "video_metadata": [
                    {
                        "fps": CLIP_FPS,
                        "total_num_frames": len(clip),
                        "duration": len(clip) / CLIP_FPS,
                    }
                    for clip in clips
                ],
            },
        )

    return prepare


@pytest.fixture(scope="module")
def ours(model):
    """vecrope's answer, under the signature of the model's own `get_rope_index`."""
    spec = vecrope.MRopeSpec.from_config(model.config, convention="transformers")

    def get_rope_index(
        input_ids,
        mm_token_type_ids,
        image_grid_thw=None,
        video_grid_thw=None,
        attention_mask=None,
        by_types=False,
        **_,
    ):
        return vecrope.get_rope_index(
            input_ids,
            spec,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            attention_mask=attention_mask,
            mm_token_type_ids=mm_token_type_ids if by_types else None,
        )

    return get_rope_index


def as_text(input_ids, attention_mask, **_):
    count = attention_mask.cumsum(-1) - 1
    return count.expand(3, -1, -1), torch.zeros(len(input_ids), 1, dtype=torch.int64)


def rope_arguments(batch):
    names = ("input_ids", "mm_token_type_ids", "attention_mask", "image_grid_thw", "video_grid_thw")
    return {name: batch[name] for name in names if name in batch}


@torch.no_grad()
def with_embeddings(model, batch):
    """Put the features in the place of the pixels.

    A model whose pictures and frames share one placeholder refuses pixels of both kinds at once.
    """
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    pictures = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    frames = model.model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"])
    embeddings[batch["mm_token_type_ids"] == 1] = torch.cat(pictures.pooler_output)
    embeddings[batch["mm_token_type_ids"] == 2] = torch.cat(frames.pooler_output)
    return {**rope_arguments(batch), "inputs_embeds": embeddings}


@torch.no_grad()
def forward(model, batch):
    """Return the logits of the prompt, and those of one token decoded by the deltas."""
    prompt = model(**batch, use_cache=True)
    token = prompt.logits[:, -1:].argmax(-1)
    return prompt.logits, model(input_ids=token, cache=prompt.cache).logits


def generate(model, batch):
    answer = model.generate(
        **batch,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return answer.sequences[:, -NEW_TOKENS:], torch.stack(answer.logits)


def run_with(monkeypatch, model, get_rope_index, run, batch):
    """Run the model with `get_rope_index` in the place of its own, which has to be called once."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(args)
        return get_rope_index(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model.model, "get_rope_index", counting)
        answer = run(model, batch)
    assert len(calls) == 1
    return answer


def equal(left, right):
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    return torch.equal(left, right)


@pytest.mark.parametrize(
    ("kind", "grids"),
    [
        ("images", {"image_grid_thw": [[1, 8, 10], [1, 14, 4], [1, 6, 6], [1, 8, 10]]}),
        ("clips", {"video_grid_thw": [[3, 4, 6], [1, 8, 6], [3, 4, 6]]}),
        (
            "images and clips",
            {
                "image_grid_thw": [[1, 8, 10], [1, 14, 4], [1, 6, 6]],
                "video_grid_thw": [[1, 8, 6], [3, 4, 6], [3, 4, 6]],
            },
        ),
    ],
)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_processor_lays_out_pictures_and_frames(prepare, model, kind, grids, padding_side):
    batch = prepare(kind, padding_side)
    assert {name: batch[name].tolist() for name in batch if name.endswith("thw")} == grids
    kinds = torch.tensor(
        [0] + [1] * ("image_grid_thw" in grids) + [2] * ("video_grid_thw" in grids)
    )
    assert torch.equal(batch["mm_token_type_ids"].unique(), kinds)
    padding = batch["attention_mask"][:, 0 if padding_side == "left" else -1]
    assert padding.unique().tolist() == [0, 1]
    frames = (batch["input_ids"] == model.config.image_start_token_id).sum()
    assert frames == sum(t for rows in grids.values() for t, _, _ in rows)


@pytest.mark.parametrize("by_types", [False, True], ids=["by ids", "by token types"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_positions_equal_the_models_own(prepare, model, ours, kind, padding_side, by_types):
    arguments = rope_arguments(prepare(kind, padding_side))
    position_ids, rope_deltas = ours(**arguments, by_types=by_types)
    their_position_ids, their_rope_deltas = model.model.get_rope_index(**arguments)
    assert equal(position_ids, their_position_ids)
    assert equal(rope_deltas, their_rope_deltas)


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_logits_equal_those_with_the_models_own_positions(monkeypatch, prepare, model, ours, kind):
    batch = prepare(kind)
    expected = forward(model, batch)
    answer = run_with(monkeypatch, model, ours, forward, batch)
    assert all(map(equal, answer, expected))


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_generated_tokens_equal_those_with_the_models_own_positions(
    monkeypatch, prepare, model, ours, kind
):
    batch = prepare(kind)
    if kind == "images and clips":
        batch = with_embeddings(model, batch)
    tokens, logits = generate(model, batch)
    rows = tokens.tolist()
    assert len(set(map(tuple, rows))) == len(rows)
    assert min(len(set(row)) for row in rows) > NEW_TOKENS / 2

    our_tokens, our_logits = run_with(monkeypatch, model, ours, generate, batch)
    assert equal(our_tokens, tokens)
    assert equal(our_logits, logits)

    wrong_tokens, _ = run_with(monkeypatch, model, as_text, generate, batch)
    assert not equal(wrong_tokens, tokens)


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_wrong_positions_or_deltas_would_change_the_logits(monkeypatch, prepare, model, ours, kind):
    def shifted(*args, **kwargs):
        position_ids, rope_deltas = ours(*args, **kwargs)
        return position_ids, rope_deltas + 1

    batch = prepare(kind)
    prompt, decoded = forward(model, batch)
    wrong_prompt, _ = run_with(monkeypatch, model, as_text, forward, batch)
    assert not equal(wrong_prompt, prompt)
    same_prompt, wrong_decoded = run_with(monkeypatch, model, shifted, forward, batch)
    assert equal(same_prompt, prompt)
    assert not equal(wrong_decoded, decoded)
