"""Whole videos through the public door, small pictures: schedules, windows, lengths, live sound."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lipcast
from latents import watched
from lipcast.errors import CancelledError, InputError, UsageError
from lipcast.models.vae_tiny import TinyDecoder
from lipcast.weights.tiny_decoder import load_tiny_decoder
from sounds import syllables

SMALL = {"size": "64*64"}


def _collect(model, portrait, path, **options):
    """(frames, latents) of a whole small video."""
    with model.stream(image=portrait, audio=path, prompt="calm", **{**SMALL, **options}) as session:
        latents = watched(session)
        blocks = list(session)
    return np.concatenate([b.frames for b in blocks]), torch.cat(latents, dim=1), blocks


@pytest.mark.parametrize("infer_frames", [12, 16])
def test_wavefront_equals_sequential(quick, portrait, sound, infer_frames):
    """Same noise, same order inside a lane: the same video, across a new reference and ring wraps."""
    path = sound(3 * infer_frames / 25)
    runs = [
        _collect(quick, portrait, path, infer_frames=infer_frames, schedule=name)
        for name in ("sequential", "wavefront")
    ]
    (frames, latents, _), (other_frames, other_latents, _) = runs
    assert (latents - other_latents).abs().max() <= 1e-5
    assert np.abs(frames.astype(int) - other_frames.astype(int)).max() <= 1


@pytest.mark.parametrize("infer_frames", [12, 24, 32, 48])
def test_any_window_over_three_clips(quick, portrait, sound, infer_frames):
    seconds = 3 * infer_frames / 25
    frames, latents, blocks = _collect(
        quick, portrait, sound(seconds), infer_frames=infer_frames, sample_steps=2
    )
    assert len(frames) == 3 * infer_frames
    assert [b.index for b in blocks] == list(range(len(blocks)))
    assert latents.isfinite().all()
    per_latent = latents.abs().amax(dim=(0, 2, 3))
    assert per_latent.min() > 0.5, "a latent frame was left blank"
    assert frames.std(axis=(1, 2, 3)).min() > 5, "a video frame was left blank"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.01, 1), (0.48, 12), (0.481, 13), (1.0, 25), (1.3, 33)]
)
def test_video_is_as_long_as_the_sound(quick, portrait, sound, seconds, expected):
    frames, _, blocks = _collect(quick, portrait, sound(seconds))
    assert len(frames) == expected
    samples = sum(len(b.audio) for b in blocks)
    assert samples == expected * blocks[0].sample_rate // 25


def test_sound_travels_with_its_frames(quick, portrait, sound):
    path = sound(1.2)
    _, _, blocks = _collect(quick, portrait, path)
    together = np.concatenate([b.audio for b in blocks])[:, 0]
    original = syllables(1.2)
    assert np.abs(together[: len(original)] - original).max() < 1e-3
    assert not together[len(original) :].any()


def test_num_clip_bounds_the_length(quick, portrait, sound):
    frames, _, _ = _collect(quick, portrait, sound(3), infer_frames=12, num_clip=2)
    assert len(frames) == 24


def test_seed_decides(quick, portrait, sound):
    path = sound(0.48)
    same = [_collect(quick, portrait, path, seed=7)[0] for _ in range(2)]
    other, _, _ = _collect(quick, portrait, path, seed=8)
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], other)


def test_reference_swap_changes_what_follows_it(quick, portrait, sound):
    path = sound(1.44)
    swapped, _, _ = _collect(quick, portrait, path, infer_frames=12)
    kept, _, _ = _collect(quick, portrait, path, infer_frames=12, swap_reference=False)
    assert np.array_equal(swapped[:9], kept[:9])
    assert not np.array_equal(swapped[12:], kept[12:])


def test_positions_far_into_a_video(quick, portrait, sound):
    """Past 10,000 s, where a table of 45,000 positions has long ended."""
    frames, latents, _ = _collect(
        quick, portrait, sound(1.44), start_frame=3 * 100_000, infer_frames=24
    )
    assert len(frames) == 36
    assert latents.isfinite().all()
    assert frames.std(axis=(1, 2, 3)).min() > 5


def test_live_pieces_equal_one_push(quick, portrait):
    """How the sound is cut into pieces changes nothing."""
    wave = syllables(1.5)
    runs = []
    for size in (1600, len(wave)):
        with quick.session(image=portrait, prompt="calm", **SMALL) as live:
            blocks = []
            for begin in range(0, len(wave), size):
                live.push(wave[begin : begin + size])
                blocks += live.ready()
            live.finish()
            blocks += live.ready()
        runs.append(np.concatenate([b.frames for b in blocks]))
    assert len(runs[0]) == 38
    assert np.array_equal(*runs)


def test_live_frames_come_while_sound_is_still_pushed(quick, portrait):
    with quick.session(image=portrait, **SMALL) as live:
        live.push(syllables(1.0))
        early = list(live.ready())
        assert early and early[0].frames.shape[0] == 12
        assert live._session.num_frames is None


def test_live_iteration_waits_for_another_thread(quick, portrait):
    with quick.session(image=portrait, **SMALL) as live:
        pusher = threading.Thread(target=lambda: (live.push(syllables(0.9)), live.finish()))
        pusher.start()
        frames = np.concatenate([b.frames for b in live])
        pusher.join()
    assert len(frames) == 23


def test_live_without_sound_is_an_error(quick, portrait):
    with quick.session(image=portrait, **SMALL) as live:
        live.finish()
        with pytest.raises(InputError, match="at least one sample"):
            list(live)


def test_cancel_and_close(quick, portrait, sound):
    session = quick.stream(image=portrait, audio=sound(2), **SMALL)
    next(session)
    session.cancel()
    with pytest.raises(CancelledError):
        next(session)
    session.close()
    session.close()


def test_cancel_wakes_a_waiting_iterator(quick, portrait):
    live = quick.session(image=portrait, **SMALL)
    timer = threading.Timer(0.2, live.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        list(live)
    timer.join()
    live.close()


def test_two_sessions_share_a_model(quick, portrait, sound):
    """State belongs to the session: interleaving two changes neither."""
    path = sound(0.96)
    alone, _, _ = _collect(quick, portrait, path)
    first, second = (
        quick.stream(image=portrait, audio=path, prompt="calm", **SMALL) for _ in range(2)
    )
    pairs = [(next(first).frames, next(second).frames) for _ in range(2)]
    for i in range(2):
        assert np.array_equal(np.concatenate([p[i] for p in pairs]), alone)


def test_rotated_tables_fixed_distance(quick, portrait, sound):
    path = sound(0.96)
    near, _, _ = _collect(quick, portrait, path, cond_distance=4)
    far, _, _ = _collect(quick, portrait, path, cond_distance=30)
    assert np.array_equal(near[:9], near[:9]) and not np.array_equal(near, far)


@pytest.mark.parametrize(
    "options",
    [{"infer_frames": 30}, {"infer_frames": 8}, {"size": "abc"}, {"sample_steps": 0},
     {"schedule": "zigzag"}, {"num_clip": 0}, {"seed": -1}, {"speed": 3}],
)  # fmt: skip
def test_wrong_options_are_explained(quick, portrait, sound, options):
    with pytest.raises(UsageError, match="expected"):
        quick.stream(image=portrait, audio=sound(0.2), **options)


def test_executor_memory_does_not_grow(quick, portrait):
    """Rings, decoder state and pending sound have the same size after 6 blocks and after 12."""
    with quick.session(image=portrait, infer_frames=12, sample_steps=2, **SMALL) as live:
        sizes = []
        for _ in range(12):
            live.push(syllables(0.48))
            list(islice(live.ready(), 100))
            session = live._session
            pending = sum(p.nbytes for p in session._timeline._pending)
            sizes.append(
                (session._executor.memory.num_bytes, session._decoder.state.num_bytes, pending)
            )
    assert sizes[6] == sizes[-1]


def test_a_decoder_of_the_users_own(loaded, portrait, sound, tmp_path):
    """Other pixels of the same latents, as many of them."""
    torch.manual_seed(0)
    decoder = TinyDecoder((32, 16, 16, 8))
    path = tmp_path / "taew2_1.safetensors"
    save_file(decoder.state_dict(), path)
    own = load_tiny_decoder(path, device="cpu", dtype=torch.float32)
    model = lipcast.Lipcast(replace(loaded.bundle, tiny_decoder=own))
    options = {"size": "64*64", "num_clip": 1, "infer_frames": 24}
    frames, latents, _ = _collect(model, portrait, sound(0.5), **options)
    expected_frames, expected_latents, _ = _collect(loaded, portrait, sound(0.5), **options)
    assert torch.equal(latents, expected_latents)
    assert frames.shape == expected_frames.shape and not np.array_equal(frames, expected_frames)
