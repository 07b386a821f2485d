"""An avatar in a LiveKit room: LiveKit's runner and native sources, a model that computes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice.avatar import (
    AudioSegmentEnd,
    DataStreamAudioOutput,
    DataStreamAudioReceiver,
    QueueAudioOutput,
)
from livekit_room import (
    AGENT,
    OUT_RATE,
    RATE,
    Events,
    Peer,
    Room,
    Watched,
    open_live,
    run,
    say,
    tone,
    until,
)

import lipcast
from lipcast.engine.live_types import LiveLimits
from lipcast.errors import CancelledError, MemoryBudgetError, SessionFailedError
from lipcast.integrations.livekit import Avatar, LiveVideo

PORTRAIT = Path(__file__).parents[2] / "examples/portrait_0.png"
WHITE = 255


async def push(video: LiveVideo, seconds: float) -> None:
    """Push a segment as a runner does."""
    for piece in tone(seconds):
        await video.push_audio(piece)
    await video.push_audio(AudioSegmentEnd())


def samples(frame: Any) -> np.ndarray:
    return np.frombuffer(frame.data, np.int16)


def kind(item: Any) -> str:
    """V for a picture, S for one of speech, A for a sound, E for an end."""
    name = {"VideoFrame": "V", "AudioFrame": "A"}.get(type(item).__name__, "E")
    return "S" if name == "V" and item.data[0] == WHITE else name


async def take(stream: Any, ends: int) -> str:
    """Return the kinds of what comes, until so many segments have ended."""
    kinds = ""
    while kinds.count("E") < ends:
        kinds += kind(await anext(stream))
    return kinds


def test_pictures_are_woven_with_their_sound_and_a_segment_ends_with_it() -> None:
    async def test() -> None:
        with open_live() as live:
            video = LiveVideo(live)
            stream: Any = aiter(video)
            await push(video, 1.0)
            items = []
            while not items or kind(items[-1]) != "E":
                items.append(await anext(stream))
            after = [kind(await anext(stream)) for _ in range(15)]
            kinds = "".join(map(kind, items)).lstrip("V")
            # 1.0 s are 25 frames; the 11 that fill the last block follow the end, without a sound.
            assert kinds == "SA" * 25 + "E"
            assert "".join(after).startswith("S" * 11) and set(after) <= {"S", "V"}
            heard = np.concatenate([samples(item) for item in items if kind(item) == "A"])
            said = np.concatenate([samples(piece) for piece in tone(1.0)])
            assert len(heard) == OUT_RATE
            # The sampling rate is doubled; the filter reaches over the ends.
            assert np.abs(heard[100:-100:2] - said[50:-50].astype(int)).max() < 40
            await stream.aclose()

    run(test)


def test_every_segment_ends_once() -> None:
    async def test() -> None:
        with open_live() as live:
            video = LiveVideo(live)
            await video.push_audio(AudioSegmentEnd())  # nothing was said: nothing ends
            stream: Any = aiter(video)
            await push(video, 0.5)
            await video.push_audio(AudioSegmentEnd())
            second = asyncio.create_task(push(video, 0.2))  # waits for the end of the first
            kinds = await take(stream, ends=2)
            await second
            spoken = [part.count("A") for part in kinds.split("E")]
            assert spoken == [13, 5, 0]
            kinds += "".join([kind(await anext(stream)) for _ in range(12)])
            assert kinds.count("E") == 2
            await stream.aclose()

    run(test)


def test_a_segment_whose_end_comes_late_ends() -> None:
    async def test() -> None:
        with open_live() as live:
            live.limits = replace(live.limits, patience_s=0.01)  # all of it is said before the end
            video = LiveVideo(live)
            stream: Any = aiter(video)
            num_sounds = 0
            await video.push_audio(rtc.AudioFrame(bytes(2 * RATE), RATE, 1, RATE))
            while num_sounds < 25:
                num_sounds += kind(await anext(stream)) == "A"
            await video.push_audio(AudioSegmentEnd())
            assert (await take(stream, ends=1)).count("A") == 0
            await stream.aclose()

    run(test)


def test_an_interrupted_segment_leaves_nothing_behind() -> None:
    async def test() -> None:
        with open_live() as live:
            video = LiveVideo(live)
            stream: Any = aiter(video)
            kinds = ""
            await push(video, 4.0)
            while kinds.count("A") < 5:
                kinds += kind(await anext(stream))
            settled = video.clear_buffer()
            assert settled is not None, "the last sound may be on its way"
            waiting = asyncio.create_task(settled)
            await asyncio.sleep(0)
            assert not waiting.done()
            kinds = kind(await anext(stream))
            await waiting
            await video.push_audio(AudioSegmentEnd())  # that of the segment that was dropped
            kinds += "".join([kind(await anext(stream)) for _ in range(15)])
            assert set(kinds) == {"V"}
            await push(video, 0.2)
            assert (await take(stream, ends=1)).count("A") == 5
            assert video.clear_buffer() is None
            await stream.aclose()

    run(test)


def test_sound_waits_where_enough_waits_and_is_dropped_by_an_interruption() -> None:
    async def test() -> None:
        with open_live() as live:  # 5 s may wait
            video = LiveVideo(live)
            live.pause()
            pushing = asyncio.create_task(push(video, 8.0))
            await until(lambda: live.stats().pending_s > 4.8)
            assert not pushing.done() and live.stats().dropped_sound_s == 0
            assert video.clear_buffer() is None
            await pushing
            # The piece that waited is gone; what was pushed after the interruption is a new segment.
            assert live.stats().pending_s == pytest.approx(3.0)
            stream: Any = aiter(video)
            live.resume()
            assert (await take(stream, ends=1)).count("A") == 75
            await stream.aclose()

    run(test)


def test_the_runner_shows_and_tells_in_order() -> None:
    async def test() -> None:
        voice = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
        avatar = Avatar(open_live(), Room("viewer"), voice)
        watched, events = Watched(avatar), Events(voice)
        await avatar.start()
        await until(lambda: len(watched.shown) > 3)
        assert not events.names and not watched.played  # an idle face is silent
        await say(voice, 0.5)
        await until(lambda: events.names == ["started", "finished"])
        assert events.positions == [pytest.approx(0.52)]
        await until(lambda: len(watched.skews_s) == 13)
        order = "".join(watched.order)
        assert "VA" * 13 + "E" in order and order.count("A") == 13
        levels = [level for _, level in watched.shown]
        assert levels.index(WHITE) > 3
        await avatar.aclose()

    run(test)


def test_an_interruption_is_acknowledged_and_no_speech_begins_after_it() -> None:
    async def test() -> None:
        voice = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
        avatar = Avatar(open_live(), Room("viewer"), voice)
        watched, events = Watched(avatar), Events(voice)
        await avatar.start()
        for count in (1, 2):
            await say(voice, 4.0)
            await until(lambda: len(watched.played) >= 3)
            voice.clear_buffer()
            await until(lambda: len(events.names) % 2 == 0)
            num_played = len(watched.played)
            watched.shown.clear()
            voice.flush()  # nothing is open any more
            await until(lambda: len(watched.shown) > 6)
            assert events.names == ["started", "interrupted"] * count
            assert len(watched.played) == num_played
            assert watched.shown[-1][1] != WHITE
            watched.played.clear()
        assert "E" not in watched.order
        assert all(0 < position < 4 for position in events.positions)
        await avatar.aclose()

    run(test)


def test_nothing_is_made_while_nobody_watches() -> None:
    async def test() -> None:
        live, room = open_live(), Room()
        room.join("agent", AGENT)
        avatar = Avatar(live, room, QueueAudioOutput())
        watched = Watched(avatar)
        await avatar.start()
        assert not live.wants_tick() and not live.poll()
        room.join("viewer")
        await until(lambda: len(watched.shown) > 2)
        assert room.num_published == 2
        room.leave("viewer")
        assert not live.wants_tick() and not live.poll()
        num_shown = len(watched.shown)
        room.join("another")
        await until(lambda: len(watched.shown) > num_shown + 5)
        await avatar.aclose()
        assert live.has_ended
        room.leave("another")  # nobody listens any more

    run(test)


def test_a_failure_ends_the_avatar_with_what_was_wrong() -> None:
    async def test() -> None:
        live = open_live()
        avatar = Avatar(live, Room("viewer"), QueueAudioOutput())
        await avatar.start()
        live.fail(MemoryBudgetError("no memory is left"))
        with pytest.raises(SessionFailedError, match="no memory is left"):
            await avatar.wait()
        with pytest.raises(CancelledError, match="no memory is left"):
            await avatar.video.push_audio(tone(0.1)[0])
        settled = avatar.video.clear_buffer()  # so that the agent is told, and does not wait
        assert settled is not None
        await settled
        await avatar.aclose()

    run(test)


def test_an_agent_of_another_process_speaks_and_interrupts() -> None:
    async def test() -> None:
        here, there = Peer("avatar", "viewer"), Peer("agent", "viewer")
        here.meet(there)
        voice = DataStreamAudioOutput(
            there, destination_identity="avatar", sample_rate=RATE, wait_playback_start=True
        )
        avatar = Avatar(open_live(), here, DataStreamAudioReceiver(here, sender_identity="agent"))
        watched, events = Watched(avatar), Events(voice)
        await avatar.start()
        await say(voice, 0.3)
        await until(lambda: events.names == ["started", "finished"])
        assert events.positions == [pytest.approx(0.32)]
        await say(voice, 4.0)
        await until(lambda: events.names[2:] == ["started"])
        voice.clear_buffer()
        await until(lambda: len(events.names) > 3)
        assert events.names[3:] == ["interrupted"]
        await say(voice, 0.2)  # after the end of the stream that was dropped
        await until(lambda: events.names[4:] == ["started", "finished"])
        assert watched.order.count("E") == 2
        for _ in range(2):  # who stops waiting leaves the avatar alone
            leaving = asyncio.create_task(avatar.wait())
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait([leaving])
        await say(voice, 0.2)
        await until(lambda: events.names[6:] == ["started", "finished"])
        leaving = asyncio.create_task(avatar.wait())
        await asyncio.sleep(0)
        here.emit("disconnected")
        await leaving
        await avatar.aclose()

    run(test)


def test_an_avatar_that_was_not_started_is_closed() -> None:
    async def test() -> None:
        live = open_live()
        avatar = Avatar(live, Room(), QueueAudioOutput())
        await avatar.aclose()
        await avatar.aclose()
        assert live.has_ended

    run(test)


@pytest.mark.slow
def test_a_model_speaks_in_a_room(tiny: lipcast.Lipcast) -> None:
    async def test() -> None:
        limits = LiveLimits(patience_s=300)
        live = tiny.live(image=PORTRAIT, limits=limits, size="64*64", sample_steps=1)
        voice = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
        avatar = Avatar(live, Room("viewer"), voice)
        watched, events = Watched(avatar), Events(voice)
        await avatar.start()
        await say(voice, 0.4)
        await until(lambda: events.names == ["started", "finished"])
        assert events.positions == [pytest.approx(0.4)]
        assert "VA" * 10 + "E" in "".join(watched.order)
        voice.clear_buffer()  # says nothing: there is nothing to interrupt
        await avatar.aclose()
        assert events.names == ["started", "finished"]

    run(test)
