"""Live sessions: states, epochs and bounds without computing; sound and latents with `tiny`."""

from __future__ import annotations

import gc
import time
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_by_hand import LIMITS, RATE, Live

from fake_live import BLOCK
from latents import watched
from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live_runner import LiveRunner
from lipcast.engine.live_types import LiveState
from lipcast.errors import CancelledError, InputError, SessionFailedError, UsageError
from planned import manager_of, planned
from profiles import examples
from sounds import syllables

SMALL: dict[str, Any] = {"size": "64*64", "sample_steps": 2}
BLOCK_SAMPLES = BLOCK * RATE // VIDEO_FPS


@pytest.fixture
def live(tiny) -> Live:
    return Live(tiny)


def tone(num_samples: int) -> np.ndarray:
    return (0.3 * np.sin(np.arange(num_samples) * 0.2)).astype(np.float32)


def test_states_of_an_utterance(live):
    seen = [live.session.state]
    live.session.push_audio(tone(1000), sample_rate=RATE)
    seen.append(live.session.state)
    live.session.push_audio(tone(2 * BLOCK_SAMPLES), sample_rate=RATE)
    live.run()
    seen.append(live.session.state)
    live.session.end_utterance()
    seen.append(live.session.state)
    speech = live.take(3 * BLOCK)
    assert sum(frame.is_speech for frame in speech) == 3 * BLOCK
    seen.append(live.session.state)
    live.session.push_audio(tone(10), sample_rate=RATE)
    live.session.finish()
    seen.append(live.session.state)
    live.take()
    seen.append(live.session.state)
    assert [state.value for state in seen] == [
        "idle", "listening", "speaking", "draining", "idle", "draining", "closed",
    ]  # fmt: skip


def test_every_picture_has_its_40_ms_of_sound(live):
    wave = syllables(2.0)
    live.session.push_audio(wave, sample_rate=RATE)
    live.session.end_utterance()
    frames = [frame for frame in live.take(60) if frame.is_speech]
    assert len(frames) == 60  # 2.0 s in whole blocks
    assert {len(frame.sound) for frame in frames} == {RATE // VIDEO_FPS}
    heard = np.concatenate([frame.sound[:, 0] for frame in frames])
    assert np.abs(heard[: len(wave)] - wave).max() < 1e-6
    assert not heard[len(wave) :].any()


def test_frames_after_the_utterance_are_told_from_it(live):
    for wave, num_heard, num_made in ((syllables(2.0), 50, 60), (syllables(0.96), 24, 24)):
        assert not live.session.has_unspoken
        live.session.push_audio(wave, sample_rate=RATE)
        live.session.end_utterance()
        heard = live.take(num_heard - 1)
        assert live.session.has_unspoken
        heard += live.take(1)
        assert not live.session.has_unspoken
        rest = live.take(num_made - num_heard)
        fillers = [frame.is_filler for frame in heard + rest]
        assert fillers == [False] * num_heard + [True] * (num_made - num_heard)
        assert all(frame.is_speech for frame in heard + rest)
    live.session.push_audio(tone(3 * BLOCK_SAMPLES), sample_rate=RATE)
    live.run(2)
    assert live.session.has_unspoken
    assert live.session.interrupt() == live.session.epoch == 1
    assert not live.session.has_unspoken


def test_idle_is_one_block_ahead_and_gives_way_to_speech(live):
    live.run()
    assert live.session.stats().num_frames_queued == BLOCK
    live.session.push_audio(tone(3 * BLOCK_SAMPLES), sample_rate=RATE)
    live.run(4)
    frames = live.session.poll(100)
    assert frames[0].is_speech
    assert live.session.stats().num_idle_dropped == BLOCK


def test_without_idle_nothing_is_made_of_silence(tiny):
    live = Live(tiny, idle=False)
    live.run()
    assert live.session.poll() == [] and live.fake.num_begun == 0


def test_interrupt_begins_an_epoch_that_nothing_old_outlives(live):
    live.session.push_audio(tone(4 * RATE), sample_rate=RATE)
    assert {frame.epoch for frame in live.take(5)} == {0}
    assert live.session.interrupt() == 1
    after = live.take(3 * BLOCK)
    assert {frame.epoch for frame in after} == {1}
    assert not any(frame.is_speech or frame.sound.any() for frame in after)
    assert [frame.index for frame in after] == list(range(5, 5 + 3 * BLOCK))
    stats = live.session.stats()
    assert stats.pending_s == 0 and stats.num_interrupts == 1
    made = stats.num_frames_given + stats.num_frames_queued + stats.num_interrupted_dropped
    assert made + stats.num_idle_dropped == stats.num_frames_made


def test_a_slow_consumer_bounds_everything(live):
    accepted = 0
    for _ in range(30):
        accepted += live.session.push_audio(tone(RATE), sample_rate=RATE)
        live.run()
    stats = live.session.stats()
    assert stats.num_frames_queued <= LIMITS.max_frames_ahead + BLOCK
    assert stats.pending_s <= LIMITS.max_pending_s
    assert (
        stats.dropped_sound_s == pytest.approx(30 - accepted / RATE) and stats.dropped_sound_s > 20
    )


def test_an_utterance_ends_where_no_sound_comes(live):
    live.session.push_audio(tone(BLOCK_SAMPLES), sample_rate=RATE)
    live.take()
    assert live.session.state is LiveState.LISTENING  # what follows may still come
    live.clock.now = LIMITS.patience_s
    frames = live.take(BLOCK)
    assert all(frame.is_speech for frame in frames) and len(frames) == BLOCK
    live.take(1)
    assert live.session.state.value == "idle"


def test_pause_makes_and_gives_nothing(live):
    live.run()
    live.session.pause()
    live.session.push_audio(tone(2 * RATE), sample_rate=RATE)
    live.run()
    assert live.session.poll(5) == [] and live.fake.num_begun == 1
    live.session.resume()
    assert live.take(BLOCK)


def test_another_rate_begins_another_utterance(live):
    live.session.push_audio(tone(RATE), sample_rate=RATE)
    live.session.push_audio((tone(48_000) * 32767).astype(np.int16), sample_rate=48_000)
    live.session.push_audio(np.stack([tone(24_000)] * 2, axis=1), sample_rate=24_000)
    live.session.finish()
    frames = live.take()
    assert len(frames) == 3 * 36 and live.session.state is LiveState.CLOSED
    assert live.fake.closed and live.session.stats().num_utterances == 3


def test_utterances_that_wait_are_counted_where_they_are_shown(live):
    for _ in range(3):
        live.session.push_audio(tone(RATE), sample_rate=RATE)
        live.session.end_utterance()
    live.clock.now = 0.5
    counts = [live.session.stats().num_utterances for _ in range(3) if live.take(36)]
    assert counts == [1, 2, 3]
    assert live.session.stats().first_frame_s == 0.5  # of the one that nothing was shown before


def test_wrong_sound_is_explained(live):
    with pytest.raises(InputError, match="float or int16"):
        live.session.push_audio(np.zeros(10, np.int64), sample_rate=RATE)
    with pytest.raises(InputError, match="NaN"):
        live.session.push_audio(np.full(10, np.nan, np.float32), sample_rate=RATE)
    with pytest.raises(UsageError, match="1000 to 768000"):
        live.session.push_audio(tone(10), sample_rate=0)
    assert live.session.state is LiveState.IDLE
    live.session.finish()
    with pytest.raises(UsageError, match="after finish"):
        live.session.push_audio(tone(10), sample_rate=RATE)
    live.session.close()
    with pytest.raises(CancelledError, match="closed"):
        live.session.push_audio(tone(10), sample_rate=RATE)


def test_a_failure_reaches_the_consumer(live):
    live.fake.failure = SessionFailedError("the session has failed: lost")
    live.runner.step()
    with pytest.raises(SessionFailedError, match="lost"):
        live.session.poll()
    assert live.session.state is LiveState.CLOSED


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 20_000)),
        st.tuples(st.just("take"), st.integers(1, 30)),
        st.tuples(st.just("tick"), st.integers(1, 6)),
        st.tuples(st.just("wait"), st.floats(0, 2)),
        st.tuples(st.sampled_from(["end", "interrupt", "pause", "resume", "finish"]), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=examples(40))
@given(ACTIONS)
def test_whatever_happens_bounds_and_order_hold(tiny, actions):
    """Any sequence of calls: no gaps, epochs never go back, bounds hold, every frame is counted."""
    live, taken, epoch = Live(tiny), [], 0
    for action, value in actions:
        if action == "push":
            try:
                live.session.push_audio(tone(value), sample_rate=RATE)
            except (UsageError, CancelledError):
                assert "finish" in {name for name, _ in actions}
        elif action == "take":
            taken += live.take(value)
        elif action == "tick":
            live.run(value)
        elif action == "wait":
            live.clock.now += value
        elif action == "interrupt" and not live.session.has_ended:
            epoch = live.session.interrupt()
        elif action != "interrupt":
            {"end": live.session.end_utterance, "pause": live.session.pause,
             "resume": live.session.resume, "finish": live.session.finish}[action]()  # fmt: skip
        found = live.session.poll(1)
        taken += found
        assert all(frame.epoch == epoch for frame in found)
        stats = live.session.stats()
        assert stats.pending_s <= LIMITS.max_pending_s + 1e-6
        assert stats.num_frames_queued <= LIMITS.max_frames_ahead + BLOCK
        seen = stats.num_frames_given + stats.num_frames_queued
        assert (
            seen + stats.num_idle_dropped + stats.num_interrupted_dropped == stats.num_frames_made
        )
    assert [frame.index for frame in taken] == list(range(len(taken)))
    assert all(a.epoch <= b.epoch for a, b in pairwise(taken))


# With the model: the same engine, the same numbers.


@settings(max_examples=examples(25))
@given(cuts=st.lists(st.integers(1, 20_799), max_size=8), rate=st.sampled_from([RATE, 44_100]))
def test_features_do_not_depend_on_the_chunking(tiny, cuts, rate):
    """Sound in any pieces, after silence: the features and samples of the whole sound in one piece."""
    wave, runs = syllables(1.3, rate), []
    for pieces in (np.split(wave, sorted(set(cuts))), [wave]):
        live = Live(tiny)
        live.take(2 * BLOCK)
        for piece in pieces:
            live.session.push_audio(piece, sample_rate=rate)
            live.runner.step()
        live.session.finish()
        spoken = [frame.sound for frame in live.take() if frame.is_speech]
        runs.append((live.fake.features, np.concatenate(spoken)))
    (features, sound), (whole_features, whole_sound) = runs
    assert len(sound) == len(whole_sound) == 3 * BLOCK_SAMPLES
    assert np.array_equal(sound, whole_sound)
    assert all(map(torch.equal, features[-3:], whole_features[-3:]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [777, 8_000, 20_800])
def test_live_latents_are_those_of_the_whole_sound(quick, portrait, size, monkeypatch):
    """Any chunking gives the latents of a session that had all of the sound at once."""
    wave = syllables(1.3)
    with quick.session(image=portrait, prompt="calm", **SMALL) as pushed:
        expected = watched(pushed.inner)
        pushed.push(wave)
        pushed.finish()
        list(pushed)
    runner = LiveRunner(quick._engine.tick, threaded=False)
    monkeypatch.setattr(quick, "_live_runner", runner)
    with quick.live(image=portrait, prompt="calm", sample_rate=RATE, idle=False, **SMALL) as live:
        latents = watched(live.inner)
        for first in range(0, len(wave), size):
            live.push_audio(wave[first : first + size], sample_rate=RATE)
            runner.step()
        live.finish()
        while not live.has_ended:
            runner.step()
        sound = np.concatenate([frame.sound[:, 0] for frame in live])
    assert all(map(torch.equal, latents, expected)) and len(latents) == len(expected) == 3
    assert np.array_equal(sound[: len(wave)], wave)


def test_the_runner_thread_and_the_public_door(quick, portrait):
    with quick.live(image=portrait, sample_rate=RATE, idle=False, **SMALL) as live:
        live.push_audio(tone(RATE // 2), sample_rate=RATE)
        live.finish()
        frames = list(live)
    assert len(frames) == 24 and frames[0].picture.shape == (64, 64, 3)
    assert live.state is LiveState.CLOSED


@pytest.mark.slow
def test_a_new_prompt_holds_from_the_next_block_on(quick, portrait):
    """The block before it is as it was; the one after it differs, as with the prompt from a new sink."""
    runs = []
    for prompt in (None, "laughing"):
        with quick.session(image=portrait, prompt="calm", **SMALL) as pushed:
            latents = watched(pushed.inner)
            pushed.push(syllables(1.5))
            blocks = pushed.ready()
            next(blocks)
            if prompt:
                pushed.inner.set_context(quick.bundle.encode_prompt(prompt))
            pushed.finish()
            list(blocks)
        runs.append(latents)
    plain, changed = runs
    assert torch.equal(plain[0], changed[0])
    assert not torch.equal(plain[-1], changed[-1])


def test_memory_of_a_planned_live_session_is_returned(quick, portrait):
    """Admitted beside others, and its memory given back when it ends by itself."""
    model = planned(quick)
    manager = manager_of(model)
    before = dict(manager.device_context.vram.parts)
    with model.live(image=portrait, sample_rate=RATE, idle=False, infer_frames=16, **SMALL) as live:
        assert manager.num_sessions == 1
        live.push_audio(tone(100), sample_rate=RATE)
        live.finish()
        assert len(list(live)) == BLOCK
        deadline = time.monotonic() + 120
        while manager.num_sessions and time.monotonic() < deadline:
            time.sleep(0.01)
    assert manager.num_sessions == 0
    assert {k: v for k, v in manager.device_context.vram.parts.items() if v} == before


def test_a_dropped_session_is_forgotten(quick, portrait):
    live = quick.live(image=portrait, sample_rate=RATE, idle=False, **SMALL)
    runner, gone = quick._live_runner, weakref.ref(live)
    del live
    deadline = time.monotonic() + 120
    while (gone() is not None or runner._thread is not None) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert gone() is None and runner._thread is None


def test_frames_say_how_much_of_the_sound_has_been_given_out(live):
    for seconds in (1.0, 0.5):
        live.session.push_audio(tone(round(seconds * RATE)), sample_rate=RATE)
        live.session.end_utterance()
    frames = live.take(6 * BLOCK)
    said = [frame.spoken_s for frame in frames if frame.is_speech]
    first = [min((num + 1) / VIDEO_FPS, 1.0) for num in range(3 * BLOCK)]
    second = [1 + min((num + 1) / VIDEO_FPS, 0.5) for num in range(2 * BLOCK)]
    assert said == pytest.approx(first + second)
    assert {frame.spoken_s for frame in frames if not frame.is_speech} <= {0.0, 1.5}
    assert frames[-1].spoken_s == 1.5
    live.session.interrupt()
    live.session.push_audio(tone(BLOCK_SAMPLES), sample_rate=RATE)
    live.session.end_utterance()
    last = [frame.spoken_s for frame in live.take(3 * BLOCK) if frame.is_speech]
    assert last == pytest.approx([(num + 1) / VIDEO_FPS for num in range(BLOCK)])
