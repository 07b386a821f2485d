"""Speech to text by a server with OpenAI's /v1/audio/transcriptions."""

from __future__ import annotations

import re

from lipcast.speech.service import Service
from lipcast.speech.sound import Sound, wav_bytes

ASR_KEY = "LIPCAST_ASR_KEY"
_NOTE = re.compile(r"\s*(\[[^\[\]]*\]\s*|\([^()]*\)\s*)+")
"""What Whisper writes where nothing is said: [BLANK_AUDIO], (silence)."""


class Transcriber:
    """Asks a server what was said."""

    def __init__(self, url: str, *, model: str = "") -> None:
        """Raises UsageError for a URL that is none."""
        self._service, self._model = Service("--asr_url", url, key=ASR_KEY), model or "whisper-1"

    async def transcribe(self, sound: Sound) -> str:
        """Return the words, or an empty text. Raises SpeechError."""
        file = ("speech.wav", wav_bytes([sound]), "audio/wav")
        form = {"model": self._model, "response_format": "json"}
        async with self._service.post(
            "audio/transcriptions", files={"file": file}, data=form
        ) as response:
            document = await self._service.document(response)
        text = document.get("text") if isinstance(document, dict) else None
        if not isinstance(text, str):
            raise self._service.unusable("no text")
        return "" if _NOTE.fullmatch(text) else text.strip()

    async def close(self) -> None:
        """End the connections."""
        await self._service.close()
