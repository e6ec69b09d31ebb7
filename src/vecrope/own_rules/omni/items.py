"""The images, videos and audio of an omni prompt: where each begins, and how large it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vecrope.core.modality import compact
from vecrope.core.search import search
from vecrope.core.stream import Stream
from vecrope.families.rules import OmniRule
from vecrope.inputs import Inputs
from vecrope.own_rules.omni.media import audio_tokens
from vecrope.spec import MRopeSpec

IMAGE, VIDEO, AUDIO, SOUND = 1, 2, 3, 4  # SOUND: a video with its sound


@dataclass(frozen=True)
class Tokens:
    """The unmasked tokens of the batch, one row after the other."""

    ids: Tensor  # (N,) -1 for the places that masked tokens leave unused, at the end
    bounds: Tensor  # (B + 1,) where each row begins, and the last one ends
    place: Tensor | None  # (N,) where each token of the input went; None: nowhere else
    padded_bounds: Tensor  # (B + 1,) as `bounds`, in the input

    def row_of(self, index: Tensor) -> Tensor:
        """Return the row of each place; the unused ones count to the last row."""
        row = search(self.bounds, index) - 1
        return row.clamp(max=self.bounds.shape[0] - 2)


@dataclass(frozen=True)
class Media:
    """The rows of `image_grid_thw`, `video_grid_thw` and `audio_seqlens`.

    Each tensor has one row more, which stands for what is not there: of no size. The rows of no
    size that a caller pads with are skipped by the orders: the k-th image is row `order[k]`.
    """

    images: Tensor  # (num_images + 1, 3) frames, height and width in tokens
    videos: Tensor  # (num_videos + 1, 3)
    seconds: Tensor  # (num_videos + 1,) float32 or float64, 1 for what is not there
    audio: Tensor  # (num_audios + 1,) tokens
    image_order: Tensor  # (num_images + 1,)
    video_order: Tensor
    audio_order: Tensor
    reads_audio: bool  # whether there is anything that says how long an audio is
    # Whether videos have their sound: all or none, or (num_videos + 1,) bool.
    has_sound: bool | Tensor

    @property
    def capacity(self) -> int:
        """One more than the most images, videos and audio that there can be."""
        return self.images.shape[0] + self.videos.shape[0] + self.audio.shape[0] - 2

    @property
    def sizes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row of the three inputs, 0 for what is not there."""
        return self.images[:-1, 0], self.videos[:-1, 0], self.audio[:-1]


@dataclass(frozen=True)
class OmniItems:
    """Images, videos and audio in the order of the prompt, (I,) int64 each.

    An item is its leading markers, a block of `visual + audio` tokens, and its trailing markers.
    There is always room for one more than the media describe, so that a surplus shows. What is not
    there follows at the end: it starts at N, and is of no size.
    """

    starts: Tensor  # place of the first leading marker
    kind: Tensor  # IMAGE, VIDEO, AUDIO or SOUND
    rows: Tensor
    ordinals: Tensor  # number among those that share its row of `Media`
    audio_ordinals: Tensor  # the same for its audio
    frames: Tensor
    height: Tensor
    width: Tensor
    audio: Tensor  # audio tokens
    seconds: Tensor  # of a frame, in the dtype of `Media.seconds`
    markers: Tensor  # on each side, as they stand in the prompt
    lead: Tensor  # tokens before the block's positions, and after them: not always the markers
    tail: Tensor
    misplaced: Tensor  # (N,) or (I,) bool: what `use_audio_in_video` rules out

    @property
    def visual(self) -> Tensor:
        """Tokens of the image or the video."""
        return self.frames * self.height * self.width


def pack(stream: Stream) -> Tokens:
    """Move masked tokens out of the way."""
    if stream.kept is None:
        return Tokens(stream.input_ids, stream.row_bounds, None, stream.row_bounds)
    num_tokens = stream.num_tokens
    ranks = stream.kept.cumsum(0)
    place = torch.where(stream.kept, ranks - 1, num_tokens)
    ids = stream.input_ids.new_full((num_tokens + 1,), -1)
    ids = ids.scatter(0, place, stream.input_ids)[:-1]
    return Tokens(ids, pad(ranks, (1, 0))[stream.row_bounds], place, stream.row_bounds)


def make_media(inputs: Inputs, spec: MRopeSpec, rule: OmniRule) -> Media:
    """Put the grids and lengths into tokens; types and shapes have been checked."""
    device = inputs.input_ids.device
    time_dtype = torch.float64 if spec.time_dtype == "float64" else torch.float32
    images, videos = (
        _grids(grids, spec.spatial_merge_size, device)
        for grids in (inputs.image_grid_thw, inputs.video_grid_thw)
    )
    seconds = inputs.second_per_grid_ts
    if seconds is None:
        default = 1.0 if spec.default_seconds is None else spec.default_seconds
        seconds = torch.full((videos.shape[0] - 1,), default, dtype=time_dtype, device=device)
    elif not isinstance(seconds, Tensor):
        seconds = torch.tensor(seconds, dtype=torch.float64)
    lengths = inputs.audio_seqlens
    lengths = videos.new_zeros((0,)) if lengths is None else lengths.to(device, torch.int64)
    audio = pad(audio_tokens(lengths, rule.n_window).clamp(min=0), (0, 1))
    return Media(
        images=images,
        videos=videos,
        seconds=pad(seconds.to(device, time_dtype), (0, 1), value=1.0),
        audio=audio,
        image_order=_order(images[:, 0]),
        video_order=_order(videos[:, 0]),
        audio_order=_order(audio),
        reads_audio=inputs.audio_seqlens is not None or has_grids(inputs),
        has_sound=_has_sound(inputs.use_audio_in_video, device),
    )


def has_grids(inputs: Inputs) -> bool:
    """Say whether the upstreams would look at the ids at all."""
    return inputs.image_grid_thw is not None or inputs.video_grid_thw is not None


def is_token(ids: Tensor, token_id: int | None) -> Tensor:
    """Say which ids are that of a token."""
    assert token_id is not None
    return ids == token_id


def _has_sound(flags: bool | Tensor | Sequence[bool], device: torch.device) -> bool | Tensor:
    if isinstance(flags, bool):
        return flags
    return pad(torch.as_tensor(flags, dtype=torch.bool, device=device), (0, 1))


def find_items(tokens: Tokens, media: Media, spec: MRopeSpec, rule: OmniRule) -> OmniItems:
    """Find the items by their first markers, and give each its row of the media."""
    ids, num_tokens = tokens.ids, tokens.ids.shape[0]
    # What follows the last token of a row is not its neighbour.
    last = torch.where(tokens.bounds[1:] > 0, tokens.bounds[1:] - 1, num_tokens)
    following = torch.cat((ids[1:], ids.new_full((2,), -1))).index_fill(0, last, -1)[:-1]
    vision = is_token(ids, spec.vision_start_token_id)
    sounds = vision & (following == rule.audio_start_token_id)
    videos = vision & is_token(following, spec.video_token_id)
    kinds = torch.where(vision & is_token(following, spec.image_token_id), IMAGE, 0)
    kinds = torch.where(videos, VIDEO, kinds)
    if media.reads_audio:
        alone = (ids == rule.audio_start_token_id) & ~pad(sounds[:-1], (1, 0))
        kinds = torch.where(alone, AUDIO, kinds)
    if media.has_sound is not False:
        kinds = torch.where(sounds, SOUND, kinds)

    starts, _ = compact(kinds > 0, media.capacity, torch.int64)
    kind = pad(kinds, (0, 1))[starts]
    filmed = (kind == VIDEO) | (kind == SOUND)
    heard = (kind == AUDIO) | (kind == SOUND)
    image = _nth(media.image_order, kind == IMAGE)
    video = _nth(media.video_order, filmed)
    audio = _nth(media.audio_order, heard)
    grids = torch.where((kind == IMAGE).unsqueeze(1), media.images[image], media.videos[video])
    frames, height, width = (grids * (filmed | (kind == IMAGE)).unsqueeze(1)).unbind(1)
    if isinstance(media.has_sound, bool):
        misplaced = videos if media.has_sound else sounds
    else:
        misplaced = filmed & (media.has_sound[video] != (kind == SOUND))
    markers = (kind > 0).long() + (kind == SOUND).long()
    early = (kind == SOUND).long() * int(rule.sound_markers == "early")
    return OmniItems(
        starts=starts,
        kind=kind,
        rows=tokens.row_of(starts),
        ordinals=torch.where(kind == IMAGE, _ordinals(kind == IMAGE), _ordinals(filmed)),
        audio_ordinals=_ordinals(heard),
        frames=frames,
        height=height,
        width=width,
        audio=media.audio[audio] * heard,
        seconds=torch.where(filmed, media.seconds[video], 1.0),
        markers=markers,
        lead=markers - early,
        tail=markers - early,
        misplaced=misplaced,
    )


def _grids(grids: Tensor | None, merge: int, device: torch.device) -> Tensor:
    if grids is None:
        return torch.zeros((1, 3), dtype=torch.int64, device=device)
    grids = grids.to(device, torch.int64).clamp(min=0)
    return pad(torch.cat((grids[:, :1], grids[:, 1:] // merge), 1), (0, 0, 0, 1))


def _order(sizes: Tensor) -> Tensor:
    """Return the indices of the sizes that are not 0, (n + 1,), the last one for all others."""
    last = sizes.shape[0] - 1
    if last == 0:
        return sizes.new_zeros((1,))
    order, _ = compact(sizes[:-1] > 0, last, torch.int64)
    return torch.cat((order, order.new_full((1,), last)))


def _ordinals(flags: Tensor) -> Tensor:
    return flags.cumsum(0) - 1


def _nth(order: Tensor, flags: Tensor) -> Tensor:
    return order[_ordinals(flags).clamp(0, order.shape[0] - 1)]
