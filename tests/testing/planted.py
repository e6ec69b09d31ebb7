"""Functions for the command line, some with a fault."""

import vecrope

SPEC = vecrope.MRopeSpec.for_model("glm4v", convention="sglang")


def sound(input_ids, **arguments):
    return vecrope.get_rope_index(input_ids, SPEC, **arguments)


def transposed(input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, attention_mask):
    """Exchange the height and the width of images."""
    if image_grid_thw is not None:
        image_grid_thw = image_grid_thw[:, [0, 2, 1]]
    return sound(
        input_ids,
        mm_token_type_ids=mm_token_type_ids,
        image_grid_thw=image_grid_thw,
        video_grid_thw=video_grid_thw,
        attention_mask=attention_mask,
    )


def writes(input_ids, **arguments):
    answer = sound(input_ids.clone(), **arguments)
    input_ids.zero_()
    return answer


def of_tokens(tokens, mask, images, videos):
    return sound(tokens, attention_mask=mask, image_grid_thw=images, video_grid_thw=videos)


def adapter(function, **given):
    return function(
        given["input_ids"],
        given["attention_mask"],
        given["image_grid_thw"],
        given["video_grid_thw"],
    )


def raises(**arguments):
    return arguments["pixels"]


def positions_alone(**arguments):
    return sound(**arguments)[0]


def three_values(**arguments):
    return (*sound(**arguments), None)


def lists(**arguments):
    return [answer.tolist() for answer in sound(**arguments)]


ISAAC = {
    "model_type": "isaac",
    "image_token_id": 9,
    "vision_config": {"pixel_shuffle_scale_factor": 2},
}


def isaac(input_ids, **arguments):
    spec = vecrope.MRopeSpec.from_config(ISAAC, convention="vllm")
    return vecrope.get_rope_index(input_ids, spec, **arguments)


def image_token_of(method):
    return method.__self__.config.image_token_id
