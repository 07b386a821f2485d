"""A portrait to talk to, in a browser: Pipecat's SmallWebRTC transport, and pictures by Lipcast.

    python integrations/pipecat/bot.py
    python integrations/pipecat/bot.py --url http://127.0.0.1:8080/v1

Without services it says what it hears. With `--url` a recogniser, a language model and a voice with OpenAI's
interface make it a conversation; their key is OPENAI_API_KEY. See docs/pipecat.md.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner

import lipcast
from lipcast.config.generate_options import GenerateOptions
from lipcast.integrations.pipecat import LipcastVideoService
from lipcast.media.image import load_portrait

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples/portrait_0.png"
BEFORE_S = 0.4
"""Sound before the voice was noticed that belongs to what was said."""


class Echo(FrameProcessor):
    """Says what it hears, and stops when somebody speaks."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: deque[InputAudioRawFrame] = deque()
        self._is_speaking = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._keep(frame)
            return
        await self.push_frame(frame, direction)
        if isinstance(frame, VADUserStartedSpeakingFrame):
            self._is_speaking = True
            await self.broadcast_interruption()
        elif isinstance(frame, VADUserStoppedSpeakingFrame) and self._is_speaking:
            self._is_speaking = False
            await self._say()

    def _keep(self, frame: InputAudioRawFrame) -> None:
        self._heard.append(frame)
        while not self._is_speaking and sum(map(_seconds, self._heard)) > BEFORE_S:
            self._heard.popleft()

    async def _say(self) -> None:
        await self.push_frame(TTSStartedFrame())
        for heard in self._heard:
            sound = TTSAudioRawFrame(heard.audio, heard.sample_rate, heard.num_channels)
            await self.push_frame(sound)
        self._heard.clear()
        await self.push_frame(TTSStoppedFrame())


def _seconds(frame: InputAudioRawFrame) -> float:
    return frame.num_frames / frame.sample_rate


def echo(transport: SmallWebRTCTransport, avatar: LipcastVideoService) -> Pipeline:
    """Return a pipeline without services."""
    voice = VADProcessor(vad_analyzer=SileroVADAnalyzer())
    return Pipeline([transport.input(), voice, Echo(), avatar, transport.output()])


def conversation(
    transport: SmallWebRTCTransport, avatar: LipcastVideoService, args: argparse.Namespace
) -> Pipeline:
    """Return a pipeline of services with OpenAI's interface. Any others of Pipecat fit as well."""
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.processors.aggregators.llm_response_universal import (
        LLMContextAggregatorPair,
        LLMUserAggregatorParams,
    )
    from pipecat.services.openai.llm import OpenAILLMService
    from pipecat.services.openai.stt import OpenAISTTService
    from pipecat.services.openai.tts import OpenAITTSService

    recogniser = OpenAISTTService(
        base_url=args.url, settings=OpenAISTTService.Settings(model=args.asr_model)
    )
    thinker = OpenAILLMService(
        base_url=args.url,
        settings=OpenAILLMService.Settings(
            model=args.llm_model, system_instruction=args.system_prompt
        ),
    )
    voice = OpenAITTSService(
        base_url=args.url,
        settings=OpenAITTSService.Settings(model=args.tts_model, voice=args.tts_voice),
    )
    context = LLMContextAggregatorPair(
        LLMContext(), user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    return Pipeline(
        [
            transport.input(), recogniser, context.user(), thinker, voice, avatar,
            transport.output(), context.assistant(),
        ]
    )  # fmt: skip


@dataclass(eq=False)
class Bot:
    """Talks to whoever connects."""

    model: Any
    image: Any
    size: tuple[int, int]
    """Width and height of the pictures; the transport would distort others."""
    args: argparse.Namespace
    options: GenerateOptions = field(default_factory=GenerateOptions)
    workers: list[PipelineWorker] = field(default_factory=list)
    _talks: set[asyncio.Task[None]] = field(default_factory=set)

    def transport(self, connection: SmallWebRTCConnection) -> SmallWebRTCTransport:
        """Return the transport of a connection. `video_out_is_live` stays off: see docs/pipecat.md."""
        width, height = self.size
        params = TransportParams(
            audio_in_enabled=True, audio_out_enabled=True, video_out_enabled=True,
            video_out_width=width, video_out_height=height, video_out_framerate=25,
        )  # fmt: skip
        return SmallWebRTCTransport(connection, params)

    def pipeline(self, transport: SmallWebRTCTransport) -> Pipeline:
        """Return what one connection runs."""
        avatar = LipcastVideoService(self.model, image=self.image, options=self.options)
        if self.args.url is None:
            return echo(transport, avatar)
        return conversation(transport, avatar, self.args)

    async def answer(self, offer: dict[str, str]) -> dict[str, str]:
        """Answer a browser's offer, and talk to it until it leaves."""
        connection = SmallWebRTCConnection()
        await connection.initialize(sdp=offer["sdp"], type=offer["type"])
        transport = self.transport(connection)
        params = PipelineParams(enable_metrics=True)
        worker = PipelineWorker(self.pipeline(transport), params=params, enable_rtvi=False)

        async def leave(*_arguments: object) -> None:
            await worker.cancel()

        transport.add_event_handler("on_client_disconnected", leave)
        self.workers.append(worker)
        talk = asyncio.create_task(self._talk(worker))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        return connection.get_answer()

    async def _talk(self, worker: PipelineWorker) -> None:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
        self.workers.remove(worker)

    async def close(self) -> None:
        """End all conversations."""
        for worker in tuple(self.workers):
            await worker.cancel()
        await asyncio.gather(*self._talks)


def make_app(bot: Bot) -> FastAPI:
    """Return the server: a page, and what answers its offer."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await bot.close()

    app = FastAPI(lifespan=life)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(HERE / "page.html")

    @app.post("/offer")
    async def offer(offered: dict[str, str]) -> dict[str, str]:
        return await bot.answer(offered)

    return app


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a name, or the folder of a checkpoint")
    parser.add_argument("--image", default=EXAMPLE, help="the portrait")
    parser.add_argument(
        "--size",
        default="256*256",
        help="area; the portrait decides the aspect",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--url", help="server with OpenAI's interface, such as http://127.0.0.1:8080/v1"
    )
    parser.add_argument("--llm_model", default="gpt-4.1-mini")
    parser.add_argument("--asr_model", default="whisper-1")
    parser.add_argument("--tts_model", default="gpt-4o-mini-tts")
    parser.add_argument("--tts_voice", default="alloy")
    parser.add_argument(
        "--system_prompt", default="You are heard, not read. Answer in a sentence or two."
    )
    return parser.parse_args(arguments)


def make_bot(model: lipcast.Lipcast, args: argparse.Namespace) -> Bot:
    """Return a bot whose pictures have the size that the portrait and the model decide."""
    options, picture = GenerateOptions(size=args.size), load_portrait(args.image)
    spec = model.spec(options, height=picture.height, width=picture.width)
    size = spec.geometry.width, spec.geometry.height
    return Bot(model, args.image, size, args, options)


def main() -> None:
    """Load the model and serve."""
    args = parse()
    with lipcast.load(args.model) as model:
        uvicorn.run(make_app(make_bot(model, args)), host="127.0.0.1", port=args.port)


if __name__ == "__main__":
    main()
