"""Several characters in one picture: each voice moves its own part of it, however the video is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lipcast
from latents import watched
from lipcast import Character
from lipcast.config.geometry import Geometry
from lipcast.engine.conditioning import token_mask
from lipcast.engine.live_sounds import LiveSounds
from lipcast.errors import InputError, UsageError
from lipcast.jobs.local import LocalRenderer
from lipcast.jobs.runner import input_sha256, run_jobs
from lipcast.jobs.store import Store
from lipcast.media.video import read_video
from lipcast.weights.bundle import ModelBundle
from portraits import side_by_side
from sounds import EXAMPLES, syllables, write_wav

FEMALE, MALE = EXAMPLES / "speech_d_female.wav", EXAMPLES / "speech_b_male.wav"
SIDE = 64
LEFT, RIGHT = f"0,0,{SIDE},{SIDE}", f"{SIDE},0,{SIDE},{SIDE}"
SMALL: dict[str, Any] = {"size": "64*128", "infer_frames": 12, "num_clip": 2, "sample_steps": 2}


@pytest.fixture(scope="module")
def two() -> Image.Image:
    return side_by_side((3, 4), SIDE)


def cast(first: Path | None, second: Path | None) -> list[Character]:
    return [Character(LEFT, first), Character(RIGHT, second)]


def latents(
    model: lipcast.Lipcast, image: Image.Image, characters: Sequence[Character], **options: Any
) -> tuple[torch.Tensor, np.ndarray]:
    """Latents [C, F, H, W] and samples of a small video."""
    with model.stream(image=image, characters=characters, **{**SMALL, **options}) as session:
        found = watched(session)
        samples = np.concatenate([block.audio for block in session])
    return torch.cat(found, dim=1), samples


@pytest.mark.slow
def test_each_voice_moves_its_own_part(quick: lipcast.Lipcast, two: Image.Image) -> None:
    both, heard = latents(quick, two, cast(FEMALE, MALE), num_clip=1)
    alone = [
        latents(quick, two, voices, num_clip=1) for voices in (cast(None, MALE), cast(FEMALE, None))
    ]
    for index, (found, _) in enumerate(alone):
        changed = (found - both).abs().mean(dim=(0, 1, 2))
        own, other = changed.chunk(2)[index].mean(), changed.chunk(2)[1 - index].mean()
        assert own > 1.8 * other, (index, own, other)
    assert np.allclose(heard, np.clip(alone[0][1] + alone[1][1], -1, 1), atol=1e-6)


def test_the_injector_changes_only_what_the_mask_says(tiny: lipcast.Lipcast) -> None:
    dit = tiny.bundle.dit
    geometry = Geometry.of(
        dit.config, tiny.bundle.vae.config, height=64, width=128, infer_frames=12
    )
    masks = np.zeros((2, 64, 128), np.uint8)
    masks[0, :, :40], masks[1, :, 90:] = 255, 255
    mask_AS = token_mask(masks, geometry)
    assert mask_AS.sum(dim=1).tolist() == [20, 20] and (mask_AS.sum(dim=0) > 0).all()
    generator = torch.Generator().manual_seed(0)
    shape = dit.config.num_audio_layers, dit.config.audio_dim, dit.config.video_frames_per_block
    features = torch.randn(3, *shape, generator=generator)
    x_GSD = torch.randn(3, mask_AS.shape[1], dit.config.dim, generator=generator)
    mask_AFS = mask_AS[:, None].expand(-1, 3, -1)
    with torch.inference_mode():
        moved = [
            dit.audio_injector(0, x_GSD, dit.encode_audio(features[voices], mask_AFS))
            for voices in ([0, 1], [0, 2])
        ]
    differs_S = (moved[0] != moved[1]).any(dim=2).any(dim=0)
    assert torch.equal(differs_S, mask_AS[1] > 0)


@pytest.mark.slow
def test_schedules_and_continuations_give_the_same_video(
    quick: lipcast.Lipcast, two: Image.Image
) -> None:
    one_by_one, _ = latents(quick, two, cast(FEMALE, MALE))
    together, _ = latents(quick, two, cast(FEMALE, MALE), schedule="wavefront")
    assert torch.equal(one_by_one, together)
    with quick.stream(image=two, characters=cast(FEMALE, MALE), end_block=1, **SMALL) as session:
        first = list(session)
        snapshot = session.snapshot
    rest = quick.stream(image=two, characters=cast(FEMALE, MALE), snapshot=snapshot, **SMALL)
    with rest:
        blocks = [*first, *rest]
    assert [block.index for block in blocks] == [0, 1]
    assert all(len(block.frames) == 12 for block in blocks)


@pytest.mark.slow
def test_two_processes_give_the_latents_of_one(quick: lipcast.Lipcast, two: Image.Image) -> None:
    options = {"swap_reference": False, "num_clip": 1, "fold_last_step": False}
    with lipcast.load("tiny", device="cpu", precision="fp32", gpus=2) as ranks:
        spread, _ = latents(ranks, two, cast(FEMALE, MALE), **options)
    here, _ = latents(quick, two, cast(FEMALE, MALE), **options)
    assert (spread - here).abs().max() < 1e-4


def test_a_job_mixes_the_voices_and_ends_like_one_video(
    quick: lipcast.Lipcast, two: Image.Image, tmp_path: Path
) -> None:
    store, picture, output = Store(tmp_path / "jobs"), tmp_path / "two.png", tmp_path / "out.mp4"
    two.save(picture)
    voices = [write_wav(tmp_path / f"{s}.wav", s, 16_000) for s in (0.9, 0.4)]
    characters = [[LEFT, str(voices[0])], [RIGHT, str(voices[1])]]
    store.submit([{
        "image": str(picture), "audio": str(voices[0]), "output": str(output), "segment_s": 0.48,
        "sha256": {str(path): input_sha256(path) for path in (picture, *voices)},
        "options": dict(SMALL, num_clip=None), "keep_segments": False, "independent": False,
        "prompt": "", "prompt_is_file": False, "characters": characters, "anonymous": True,
    }])  # fmt: skip
    assert run_jobs(store, LocalRenderer(model=quick), log=lambda _: None) == 0
    video = read_video(output)
    assert len(video.frames) == 23 and video.frames.shape[1:3] == (64, 128)
    heard = video.audio[:, 0]
    mix = syllables(0.9)[: len(heard)] + np.pad(syllables(0.4), (0, 8000))[: len(heard)]
    assert np.corrcoef(heard[: len(mix)], mix)[0, 1] > 0.95


def test_two_streams_of_a_live_session(quick: lipcast.Lipcast, two: Image.Image) -> None:
    options: dict[str, Any] = {"size": "64*128", "infer_frames": 12, "sample_steps": 1}
    with quick.live(
        image=two, characters=[LEFT, RIGHT], sample_rate=16_000, idle=False, **options
    ) as live:
        with pytest.raises(UsageError, match="character: expected 0 to 1"):
            live.push_audio(syllables(0.1), sample_rate=16_000, character=2)
        live.pause()
        live.push_audio(syllables(0.9), sample_rate=16_000)
        live.push_audio(syllables(0.4), sample_rate=16_000, character=1)
        live.finish()
        live.resume()
        frames = list(live)
    assert len(frames) == 24 and all(frame.is_speech for frame in frames)
    heard = np.concatenate([frame.sound[:, 0] for frame in frames])
    mix = np.pad(syllables(0.9), (0, len(heard) - 14_400))
    mix[:6400] += syllables(0.4)
    assert np.abs(heard - np.clip(mix, -1, 1)).max() < 1e-4


def test_regions_too_small_for_the_size(quick: lipcast.Lipcast, two: Image.Image) -> None:
    characters = [Character("0,0,3,3", FEMALE), Character(RIGHT, MALE)]
    with pytest.raises(InputError, match="one of the regions is too small"):
        quick.stream(image=two, characters=characters, **SMALL)


def test_what_is_wrong_is_found_before_an_encoder_runs(
    quick: lipcast.Lipcast, two: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_keywords: Any) -> None:
        pytest.fail("an encoder was run")

    monkeypatch.setattr(ModelBundle, "encode_prompts", fail)
    for name in ("pose_video", "continue_from"):
        direction = lipcast.Direction(**{name: tmp_path / "nowhere.mp4"})
        with pytest.raises(InputError, match="which does not exist"):
            quick.stream(image=two, audio=FEMALE, direction=direction, **SMALL)
    monkeypatch.setattr(LiveSounds, "timeline", fail)
    with pytest.raises(InputError, match="these regions overlap"):
        quick.live(image=two, characters=[LEFT, LEFT], size="64*128")
