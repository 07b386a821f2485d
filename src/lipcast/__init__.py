"""Lipcast: a portrait, a voice and a prompt become a talking video.

    model = lipcast.load("tiny")
    model.generate(image="me.png", audio="hello.wav", prompt="a calm man").save("out.mp4")

Importing this module is cheap; torch is loaded by `load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcast.api import (
        AVFrame,
        Character,
        Direction,
        FrameBlock,
        GenerateOptions,
        GpuOptions,
        Lipcast,
        LiveLimits,
        LiveSession,
        MemoryOptions,
        PushSession,
        Video,
        load,
        save_blocks,
        speak,
    )

__version__ = "0.1.0"
__all__ = [
    "AVFrame", "Character", "Direction", "FrameBlock", "GenerateOptions", "GpuOptions", "Lipcast",
    "LiveLimits",
    "LiveSession", "MemoryOptions", "PushSession", "Video", "__version__", "load", "save_blocks", "speak",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from lipcast import api

        return getattr(api, name)
    raise AttributeError(f"module 'lipcast' has no attribute {name!r}")
