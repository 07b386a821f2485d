"""What a server has for talking: speech synthesis, recognition, a language model, voice activity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lipcast.errors import SpeechError, UsageError
from lipcast.speech.chat import SYSTEM_PROMPT, ChatModel
from lipcast.speech.recognition import Transcriber
from lipcast.speech.synthesis import TextToSpeech, find_tts
from lipcast.speech.voice_activity import Probability, find_detector


@dataclass(frozen=True, slots=True)
class SpeechServices:
    """What is there; None for what is not."""

    tts: TextToSpeech | None = None
    asr: Transcriber | None = None
    llm: ChatModel | None = None
    make_detector: Callable[[], Probability] | None = None
    system_prompt: str = SYSTEM_PROMPT

    def described(self) -> dict[str, bool]:
        """Return what is there, as `/api/info` says it."""
        return {
            "tts": self.tts is not None,
            "asr": self.asr is not None,
            "llm": self.llm is not None,
            "vad": self.make_detector is not None,
        }

    async def close(self) -> None:
        """End all connections."""
        for service in (self.tts, self.asr, self.llm):
            if service is not None:
                await service.close()


def find_services(
    *,
    tts: str = "auto",
    tts_voice: str | None = None,
    tts_model: str = "",
    asr_url: str | None = None,
    asr_model: str = "",
    llm_url: str | None = None,
    llm_model: str | None = None,
    system_prompt: str = SYSTEM_PROMPT,
) -> SpeechServices:
    """Return the services that flags of `lipcast serve` name; "off" is no speech synthesis.

    Raises UsageError for flags that do not go together, SpeechError for an engine that is not there.
    """
    engine = _engine(tts, tts_voice, tts_model)
    if llm_url is not None and llm_model is None:
        raise UsageError("--llm_url: give the model's name as the server knows it with --llm_model")
    if asr_url is not None and llm_url is None:
        raise UsageError("--asr_url: give the server that answers what was heard with --llm_url")
    if llm_url is not None and engine is None:
        raise UsageError(
            "--llm_url: answers are spoken; pip install 'lipcast[tts]', or choose another --tts"
        )
    return SpeechServices(
        tts=engine,
        asr=None if asr_url is None else Transcriber(asr_url, model=asr_model),
        llm=None if llm_url is None else ChatModel(llm_url, model=llm_model or ""),
        make_detector=find_detector(),
        system_prompt=system_prompt,
    )


def _engine(tts: str, voice: str | None, model: str) -> TextToSpeech | None:
    """Return the engine; None where it is off, or where no particular one is asked for and none is there."""
    if tts == "off":
        return None
    try:
        return find_tts(tts, voice=voice, model=model)
    except SpeechError:
        if tts == "auto" and voice is None:
            return None
        raise
