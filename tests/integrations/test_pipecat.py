"""The service for Pipecat in a pipeline of this process: order, interruption, errors, the end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from fake_live import SIDE, FakeModel
from lipcast.config.generate_options import GenerateOptions
from lipcast.errors import AdmissionError

pytest.importorskip("pipecat", reason="pipecat-ai is not installed")

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    MetricsFrame,
    OutputImageRawFrame,
    TextFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.metrics.metrics import ProcessingMetricsData, TTFBMetricsData
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.workers.runner import WorkerRunner

from lipcast.integrations.pipecat import LipcastVideoService

RATE = 24_000
PORTRAIT = np.zeros((SIDE, SIDE, 3), np.uint8)


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech is pushed as soon as it is made."""
    monkeypatch.setattr("lipcast.integrations.pipecat._LEAD_S", 100.0)


class Sink(FrameProcessor):
    """Keeps what comes, and tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.changed = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: Any) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        self.changed.set()
        await self.push_frame(frame, direction)

    async def until(self, condition: Callable[[list[Frame]], Any]) -> Any:
        async with asyncio.timeout(120):
            while not (found := condition(self.frames)):
                self.changed.clear()
                await self.changed.wait()
            return found

    def of(self, *kinds: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kinds)]


class Running:
    """A pipeline of the service and a sink; an asynchronous context manager."""

    def __init__(self, model: Any = None, **service: Any) -> None:
        self.model = model or FakeModel()
        self.service = LipcastVideoService(self.model, image=PORTRAIT, **service)
        self.sink, self.errors = Sink(), []

    async def __aenter__(self) -> Running:
        params = PipelineParams(audio_out_sample_rate=RATE, enable_metrics=True)
        pipeline = Pipeline([self.service, self.sink])
        self.worker = PipelineWorker(pipeline, params=params, enable_rtvi=False)
        self.worker.add_event_handler("on_pipeline_error", self._note)
        self._runner = WorkerRunner(handle_sigint=False)
        await self._runner.add_workers(self.worker)
        self._run = asyncio.create_task(self._runner.run())
        return self

    async def _note(self, _worker: Any, frame: ErrorFrame) -> None:
        self.errors.append(frame.error)
        self.sink.changed.set()

    async def __aexit__(self, *_error: object) -> None:
        await self.worker.cancel()
        async with asyncio.timeout(120):
            await self._run
        assert self.service._live is None and self.service._showing is None

    async def say(self, *frames: Frame) -> None:
        await self.worker.queue_frames(list(frames))


def speech(seconds: float, value: int = 1000) -> TTSAudioRawFrame:
    samples = np.arange(1, round(seconds * RATE) + 1, dtype=np.int32) % 7 + value
    return TTSAudioRawFrame(samples.astype(np.int16).tobytes(), RATE, 1)


def utterance(seconds: float, value: int = 1000, name: str = "one") -> list[Frame]:
    return [TTSStartedFrame(name), speech(seconds, value), TextFrame(name), TTSStoppedFrame(name)]


def heard(frames: list[Frame]) -> bytes:
    return b"".join(frame.audio for frame in frames if isinstance(frame, TTSAudioRawFrame))


def is_stopped(frames: list[Frame], count: int = 1) -> bool:
    return sum(isinstance(frame, TTSStoppedFrame) for frame in frames) >= count


@in_a_loop
async def test_speech_comes_out_as_it_came_in_between_its_frames(hurried):
    async with Running() as running:
        await running.say(*utterance(0.7), *utterance(0.5, 2000, "two"))
        await running.sink.until(lambda frames: is_stopped(frames, 2))
        kinds = TTSStartedFrame, TTSAudioRawFrame, TextFrame, TTSStoppedFrame
        found = running.sink.of(*kinds)
        names = [type(frame).__name__.removesuffix("Frame") for frame in found]
        one = ["TTSStarted", *["TTSAudioRaw"] * 18, "Text", "TTSStopped"]
        assert names == [*one, "TTSStarted", *["TTSAudioRaw"] * 13, "Text", "TTSStopped"]
        padding = [bytes(2 * round(seconds * RATE)) for seconds in (0.02, 0.02)]
        said = [speech(0.7).audio, padding[0], speech(0.5, 2000).audio, padding[1]]
        assert heard(found) == b"".join(said)
        contexts = [frame.context_id for frame in found if isinstance(frame, TTSAudioRawFrame)]
        assert contexts == ["one"] * 18 + ["two"] * 13


@pytest.mark.parametrize("late", [0, 2])
@in_a_loop
async def test_every_picture_follows_its_sound(hurried, late):
    async with Running(pictures_late=late) as running:
        await running.say(*utterance(0.96))
        await running.sink.until(is_stopped)
        shown = [
            frame
            for frame in running.sink.of(TTSAudioRawFrame, OutputImageRawFrame)
            if isinstance(frame, TTSAudioRawFrame) or is_white(frame)
        ]
        is_sound = [isinstance(frame, TTSAudioRawFrame) for frame in shown]
        assert is_sound == [*[True] * late, *[True, False] * (24 - late)]
        picture = shown[-1]
        assert picture.sync_with_audio and picture.format == "RGB" and picture.size == (SIDE, SIDE)


def is_white(frame: OutputImageRawFrame) -> bool:
    return frame.image[0] == 255


@in_a_loop
async def test_idle_pictures_have_no_sound_and_do_not_run_ahead():
    async with Running() as running:
        await running.sink.until(lambda _: len(running.sink.of(OutputImageRawFrame)) >= 5)
        assert running.sink.of(TTSAudioRawFrame) == []
        stats = running.service._live.stats()
        assert stats.num_frames_made <= stats.num_frames_given + 24


@in_a_loop
async def test_an_interruption_ends_speech_at_once_and_what_follows_is_heard():
    async with Running() as running:
        await running.say(*utterance(4.0), EventFrame())
        await running.sink.until(lambda frames: len(running.sink.of(TTSAudioRawFrame)) > 10)
        await running.say(InterruptionFrame())
        await running.sink.until(lambda frames: running.sink.of(InterruptionFrame))
        await running.say(*utterance(0.48, 2000, "two"))
        await running.sink.until(is_stopped)
        frames = running.sink.frames
        cut = frames.index(running.sink.of(InterruptionFrame)[0])
        assert len(heard(frames[:cut])) < len(speech(4.0).audio)
        assert heard(frames[cut:]) == speech(0.48, 2000).audio
        names = [frame.context_id for frame in running.sink.of(TTSStoppedFrame)]
        assert names == ["two"]
        texts = [frame.text for frame in frames[cut:] if isinstance(frame, TextFrame)]
        assert texts == ["kept", "two"]  # what may not be interrupted is not lost
        assert running.service._live.stats().num_interrupts == 1


class EventFrame(TextFrame):
    """Follows speech, and may not be lost."""

    def __init__(self) -> None:
        super().__init__("kept")
        self.interruptible = False


@in_a_loop
async def test_more_speech_than_the_session_holds_is_not_lost(hurried):
    async with Running() as running:
        await running.say(*utterance(6.5))
        await running.sink.until(is_stopped)
        assert heard(running.sink.frames)[: len(speech(6.5).audio)] == speech(6.5).audio
        assert running.service._live.stats().dropped_sound_s == 0


@in_a_loop
async def test_the_end_waits_for_the_last_word(hurried):
    async with Running() as running:
        await running.say(*utterance(0.96), EndFrame())
        await running.sink.until(lambda _: running.sink.of(EndFrame))
        assert heard(running.sink.frames) == speech(0.96).audio
        assert isinstance(running.sink.frames[-1], EndFrame)
        assert all(session.closed for session in running.model.sessions)


@in_a_loop
async def test_cancel_closes_everything_in_the_middle_of_a_word():
    async with Running() as running:
        await running.say(*utterance(4.0))
        await running.sink.until(lambda _: running.sink.of(TTSAudioRawFrame))
        live = running.service._live
        await running.worker.cancel()
        await running.sink.until(lambda _: running.sink.of(CancelFrame))
        assert live.has_ended and [session.closed for session in running.model.sessions] == [True]
    assert not [task for task in asyncio.all_tasks() if "Lipcast" in task.get_name()]


@in_a_loop
async def test_metrics_tell_the_time_to_the_first_frame(hurried):
    async with Running() as running:
        await running.say(*utterance(0.96))
        await running.sink.until(is_stopped)
        sent = [each for frame in running.sink.of(MetricsFrame) for each in frame.data]
        mine = [each for each in sent if each.processor == running.service.name and each.value > 0]
        assert [type(each) for each in mine] == [TTFBMetricsData, ProcessingMetricsData]


@in_a_loop
async def test_without_room_for_a_session_speech_goes_on_without_a_face():
    async with Running(FakeModel(room=0)) as running:
        await running.say(*utterance(0.5))
        await running.sink.until(is_stopped)
        assert heard(running.sink.frames) == speech(0.5).audio
        await running.sink.until(lambda _: running.errors)
        assert "does not fit" in running.errors[0]
        assert not running.service.is_usable


@in_a_loop
async def test_a_session_that_fails_is_told_and_speech_goes_on():
    async with Running() as running:
        await running.say(*utterance(4.0))
        await running.sink.until(lambda _: running.sink.of(TTSAudioRawFrame))
        running.service._live.fail(AdmissionError("the memory is gone"))
        await running.sink.until(is_stopped)
        assert "the memory is gone" in running.errors[0]
        await running.say(*utterance(0.3, 3000))
        await running.sink.until(lambda frames: is_stopped(frames, 2))
        assert heard(running.sink.frames).endswith(speech(0.3, 3000).audio)


@pytest.mark.slow
@in_a_loop
async def test_with_a_real_model(hurried, quick):
    options = GenerateOptions(size="64*64", sample_steps=2)
    async with Running(quick, options=options) as running:
        await running.say(*utterance(0.96), EndFrame())
        await running.sink.until(lambda _: running.sink.of(EndFrame))
        assert heard(running.sink.frames) == speech(0.96).audio
        pictures = running.sink.of(OutputImageRawFrame)
        assert len({picture.image for picture in pictures}) > 12
        assert not running.errors
