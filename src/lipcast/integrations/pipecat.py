"""A talking portrait for Pipecat: speech comes in, the same speech and its pictures go out.

`LipcastVideoService` stands between a TTS service and the output transport. Input: `TTSAudioRawFrame`s, and
an `InterruptionFrame` that ends what is being said. Output: `TTSAudioRawFrame`s of 40 ms, each followed by a
picture, and idle pictures between utterances. Whatever else comes keeps its place in the speech. The pictures
are made by a live session in a thread of its own; nothing of an interrupted utterance is pushed after the
`InterruptionFrame`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    StartFrame,
    SystemFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessorSetup
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import VIDEO_FPS
from lipcast.engine.live import LiveSession
from lipcast.engine.live_types import AVFrame
from lipcast.errors import LipcastError, SessionFailedError
from lipcast.media.image import ImageSource

_LEAD_S = 0.4
"""How much speech may be pushed ahead of the clock; idle pictures never are."""
_LOOK_S = 0.02
_PIECE_S = 1.0
_SAME_S = 1e-6
_FULL_SCALE = 32768


class LiveModel(Protocol):
    """What the service needs of `Lipcast`."""

    def live(
        self, *, image: ImageSource, prompt: str, sample_rate: int, options: GenerateOptions
    ) -> LiveSession: ...


class LipcastVideoService(AIService):
    """Shows a portrait that says what a TTS service speaks.

    The transport needs `video_out_enabled`, not `video_out_is_live`, and the size of the pictures.
    """

    def __init__(
        self,
        model: LiveModel,
        *,
        image: ImageSource,
        prompt: str = "",
        options: GenerateOptions | None = None,
        pictures_late: int = 0,
        **service: Any,
    ) -> None:
        """`pictures_late`: pictures are pushed so many frames after their sound.

        For a transport that delays sound, such as one with a sampling rate other than the pipeline's.
        """
        super().__init__(settings=ServiceSettings(model=None), **service)
        self._model, self._image, self._prompt = model, image, prompt
        self._options, self._pictures_late = options or GenerateOptions(), pictures_late
        self._live: LiveSession | None = None
        self._showing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        """Held while frames are pushed, so that an interruption comes between two of them."""
        self._moved = asyncio.Event()
        self._late: deque[NDArray[np.uint8]] = deque()
        self._held: deque[tuple[float, Frame]] = deque()
        """What follows speech that has not been pushed, with the seconds of speech before it."""
        self._epoch = 0
        self._heard_s = self._spoken_s = self._plays_until = 0.0
        self._waits_for_sound = False
        self._context_id: str | None = None

    def can_generate_metrics(self) -> bool:
        """Whether `PipelineParams.enable_metrics` shows times: to the first frame, and of an utterance."""
        return True

    # The pipeline begins and ends.

    async def setup(self, setup: FrameProcessorSetup) -> None:
        """Open a session; where that fails, the error is pushed and speech goes on without a face."""
        await super().setup(setup)
        try:
            self._live = await asyncio.to_thread(self._open, setup.audio_out_sample_rate)
        except LipcastError as error:
            await self._report(error)

    def _open(self, sample_rate: int) -> LiveSession:
        live = self._model.live(
            image=self._image, prompt=self._prompt, sample_rate=sample_rate, options=self._options
        )
        live.pause()
        return live

    async def stop(self, frame: EndFrame) -> None:
        """Say what was heard before the end, then close the session."""
        await super().stop(frame)
        if self._live is not None:
            self._live.end_utterance()
            await self._wait_while(lambda: self._heard_s > self._spoken_s + _SAME_S)
        await self._close()

    async def cancel(self, frame: CancelFrame) -> None:
        """Close the session at once."""
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        """Close what is open."""
        await super().cleanup()
        await self._close()

    async def _close(self) -> None:
        task, self._showing = self._showing, None
        live, self._live = self._live, None
        self._moved.set()
        if task is not None:
            await self.cancel_task(task)
        if live is not None:
            await asyncio.to_thread(live.close)

    # Frames in.

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Take speech and interruptions; anything else is passed on in its place."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InterruptionFrame):
            await self._interrupt(frame, direction)
        elif isinstance(frame, SystemFrame) or direction is not FrameDirection.DOWNSTREAM:
            await self.push_frame(frame, direction)
        elif isinstance(frame, TTSAudioRawFrame) and self._live is not None:
            await self._hear(frame, self._live)
        else:
            await self._pass_on(frame)
        if isinstance(frame, StartFrame) and self._live is not None:
            self._live.resume()
            self._showing = self.create_task(self._show(self._live), "lipcast")

    async def _hear(self, frame: TTSAudioRawFrame, live: LiveSession) -> None:
        """Hand speech to the session, as far as it has room for it; then wait."""
        if self._heard_s <= self._spoken_s + _SAME_S:
            self._waits_for_sound = True
            await self.start_ttfb_metrics()
            await self.start_processing_metrics()
        samples = np.frombuffer(frame.audio, np.int16).reshape(-1, frame.num_channels)
        size = round(frame.sample_rate * _PIECE_S)
        most_s = live.limits.max_pending_s - _PIECE_S
        for start in range(0, len(samples), size):
            await self._wait_while(lambda: live.stats().pending_s > most_s)
            if self._live is None:
                return
            piece = samples[start : start + size]
            accepted = live.push_audio(piece, sample_rate=frame.sample_rate)
            self._heard_s += accepted / frame.sample_rate

    async def _pass_on(self, frame: Frame) -> None:
        """Push a frame once the speech before it has been pushed."""
        if isinstance(frame, TTSStoppedFrame) and self._live is not None:
            self._live.end_utterance()
        async with self._turn:
            self._held.append((self._heard_s, frame))
            await self._release()

    async def _interrupt(self, frame: InterruptionFrame, direction: FrameDirection) -> None:
        """Forget all speech, and the frames that would have followed it."""
        async with self._turn:
            kept = [each for _, each in self._held if not each.interruptible]
            self._late.clear()
            self._held.clear()
            self._heard_s = self._spoken_s = self._plays_until = 0.0
            if self._live is not None and not self._live.has_ended:
                self._epoch = self._live.interrupt()
            self._moved.set()
            await self.push_frame(frame, direction)
            for each in kept:
                await self.push_frame(each)

    # Frames out.

    async def _show(self, live: LiveSession) -> None:
        """Push what the session makes when it is due, until the session ends."""

        def lead_s() -> float:
            kind = live.next_kind()
            return _LEAD_S if kind is not None and kind[1] else 0.0

        try:
            await self._wait_until_due(lead_s)
            while frames := await live.next_frames():
                await self._give(frames[0])
                await self._wait_until_due(lead_s)
        except SessionFailedError as error:
            await self._report(error)
        await self._go_on_without(live)

    async def _wait_until_due(self, lead_s: Callable[[], float]) -> None:
        """Wait until what was pushed has been played, but for so much."""
        while (early_s := self._plays_until - lead_s() - time.monotonic()) > 0:
            await asyncio.sleep(min(early_s, _LOOK_S))

    async def _give(self, frame: AVFrame) -> None:
        """Push a frame's sound, and the picture of some frames before it."""
        if frame.epoch != self._epoch:
            return
        if not frame.is_heard:
            # Nothing paces it on its way: the silence after the last word, or idle.
            await self._wait_until_due(float)
        async with self._turn:
            if frame.epoch != self._epoch:
                return
            if frame.is_heard:
                await self._note_first_sound()
                await self.push_frame(self._sound_of(frame))
            self._late.append(frame.picture)
            if len(self._late) > self._pictures_late:
                await self.push_frame(_picture_of(self._late.popleft()))
            self._plays_until = max(self._plays_until, time.monotonic()) + 1 / VIDEO_FPS
            self._spoken_s = max(self._spoken_s, frame.spoken_s)
            await self._release()

    async def _note_first_sound(self) -> None:
        if self._waits_for_sound:
            self._waits_for_sound = False
            await self.stop_ttfb_metrics()

    async def _release(self) -> None:
        """Push the frames whose turn has come."""
        while self._held and self._held[0][0] <= self._spoken_s + _SAME_S:
            _, frame = self._held.popleft()
            if isinstance(frame, TTSStartedFrame):
                self._context_id = frame.context_id
            if isinstance(frame, TTSStoppedFrame):
                await self.stop_processing_metrics()
            await self.push_frame(frame)
        self._moved.set()

    def _sound_of(self, frame: AVFrame) -> TTSAudioRawFrame:
        sound = np.rint(frame.sound * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1)
        return TTSAudioRawFrame(
            audio=sound.astype(np.int16).tobytes(),
            sample_rate=frame.sample_rate,
            num_channels=frame.sound.shape[1],
            context_id=self._context_id,
        )

    async def _go_on_without(self, live: LiveSession) -> None:
        """Give up the face: what was heard is lost, and what follows is passed on."""
        async with self._turn:
            self._live, self._showing, self._spoken_s = None, None, self._heard_s
            await self._release()
        await asyncio.to_thread(live.close)

    async def _report(self, error: LipcastError) -> None:
        await self.push_error(str(error), exception=error, force_treat_as_permanent=True)

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait while a condition holds and there is a session."""
        while self._live is not None and condition():
            self._moved.clear()
            await self._moved.wait()


def _picture_of(picture: NDArray[np.uint8]) -> OutputImageRawFrame:
    """Return a picture that keeps its place among the sound."""
    height, width, _ = picture.shape
    frame = OutputImageRawFrame(image=picture.tobytes(), size=(width, height), format="RGB")
    frame.sync_with_audio = True
    return frame
