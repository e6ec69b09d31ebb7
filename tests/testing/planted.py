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
