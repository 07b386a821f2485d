"""A server on a port of this machine, with a model that computes nothing."""

from __future__ import annotations

import threading
from typing import Any

from fake_live import FakeModel
from lipcast.config.generate_options import GenerateOptions
from lipcast.serve.hub import Hub
from lipcast.serve.run import RunningServer
from lipcast.serve.settings import ServeSettings
from lipcast.serve.video_queue import MakeRenderer, VideoQueue, local_renderer, made_with
from lipcast.speech.services import SpeechServices


class Running:
    """A server in a thread of this process."""

    def __init__(
        self,
        *,
        speech: SpeechServices | None = None,
        make_renderer: MakeRenderer = local_renderer,
        **changes: Any,
    ) -> None:
        self.model = FakeModel(side=256)
        changes.setdefault("prepare", False)
        settings, options = ServeSettings(port=0, **changes), GenerateOptions()
        videos = VideoQueue(
            settings, options=options, made_with=made_with(), make_renderer=make_renderer
        )
        self.hub = Hub(lambda: self.model, settings, speech=speech, videos=videos)
        self.server = RunningServer(self.hub)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.stop()
        self.thread.join(120)
        assert not self.thread.is_alive()
