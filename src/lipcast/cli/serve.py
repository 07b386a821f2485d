"""`lipcast serve`: talk to a portrait in a browser, or over a WebSocket.

Input: the given options. Output: a server until Ctrl-C or SIGTERM; its log is one JSON document a line. The
model is loaded once, and a block is made with it before the server is ready.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.command import Option, Section, command, toggle
from lipcast.cli.compat_flags import accepted_flags
from lipcast.cli.console import Console
from lipcast.cli.options import MODEL, options_from, options_named, tts_option
from lipcast.cli.request import DEFAULT_MODEL, generate_options, gpu_options, precision
from lipcast.cli.types import COUNT, FILE, FOLDER, SECONDS, TEXT
from lipcast.config.memory_options import MemoryOptions
from lipcast.env import secret
from lipcast.media.signing import signing_key

_SECRETS = {"token": "LIPCAST_TOKEN", "turn_password": "LIPCAST_TURN_PASSWORD"}
"""Flags that the environment may give, where the list of processes does not show them."""

if TYPE_CHECKING:
    from lipcast.api import Lipcast
    from lipcast.serve.settings import ServeSettings

_SPEECH = (
    tts_option("off"),
    *options_named("tts_voice", "tts_model"),
    Option(
        "asr_url",
        "Server with OpenAI's /v1/audio/transcriptions, which understands questions from the microphone; its "
        "key is in LIPCAST_ASR_KEY.",
        section=Section.SPEECH, metavar="URL",
    ),
    Option(
        "asr_model", "Model of the server that understands speech.",
        section=Section.SPEECH, metavar="NAME", show_default="whisper-1",
    ),
    Option(
        "llm_url",
        "Server with OpenAI's /v1/chat/completions, which answers questions; its key is in LIPCAST_LLM_KEY.",
        section=Section.SPEECH, metavar="URL",
    ),
    Option("llm_model", "Model that answers.", section=Section.SPEECH, metavar="NAME"),
    Option(
        "system_prompt", "What the model that answers is told about itself.",
        section=Section.SPEECH, type=TEXT, metavar="TEXT", show_default="answer briefly, to be read out",
    ),
)  # fmt: skip
_SPEECH_NAMES = tuple(option.name for option in _SPEECH)
_OPTIONS = (
    MODEL,
    Option("host", "Address to listen at.", metavar="HOST", show_default="127.0.0.1"),
    Option("port", "TCP port; 0 picks a free one.", type=int, metavar="N", show_default="8000"),
    *options_named("size", "audio_scale"),
    Option(
        "token", "Secret that every request carries, or LIPCAST_TOKEN in the environment. Without one only "
        "this machine can connect.",
        section=Section.ACCESS, metavar="TEXT", show_default="made up and printed, off loopback",
    ),
    Option(
        "tls_cert", "Certificate (PEM) for https, which browsers ask for before they give the microphone.",
        section=Section.ACCESS, type=FILE,
    ),
    Option("tls_key", "Key (PEM) of the certificate.", section=Section.ACCESS, type=FILE),
    Option(
        "allow_origin", "Origin of another page that may connect, such as https://example.org.",
        section=Section.ACCESS, metavar="ORIGIN", multiple=True,
    ),
    Option(
        "ice_server", "STUN server for WebRTC, as stun:HOST:PORT; none is asked unless it is given.",
        section=Section.ACCESS, metavar="URL", multiple=True,
    ),
    Option(
        "turn_url", "TURN server that relays WebRTC, as turn:HOST:PORT, turn:HOST:PORT?transport=tcp or "
        "turns:HOST:PORT.",
        section=Section.ACCESS, metavar="URL",
    ),
    Option("turn_user", "User at the TURN server.", section=Section.ACCESS, metavar="TEXT"),
    Option(
        "turn_password", "Password of that user, or LIPCAST_TURN_PASSWORD in the environment. Clients are "
        "told it, and requests need a token then.",
        section=Section.ACCESS, metavar="TEXT",
    ),
    Option(
        "max_sessions", "Sessions at a time.",
        section=Section.LIMITS, type=COUNT, metavar="N", show_default="4",
    ),
    Option(
        "max_upload_bytes", "Bytes of an uploaded portrait.",
        section=Section.LIMITS, type=COUNT, metavar="N", show_default="10485760",
    ),
    Option(
        "max_pixels", "Pixels of an uploaded portrait.",
        section=Section.LIMITS, type=COUNT, metavar="N", show_default="25000000",
    ),
    Option(
        "max_session_s", "Length of a session.",
        section=Section.LIMITS, type=SECONDS, show_default="1h",
    ),
    Option(
        "idle_s", "A session without sound or a message is closed after so long.",
        section=Section.LIMITS, type=SECONDS, show_default="5min",
    ),
    Option(
        "grace_s", "A session waits so long for its client to come back.",
        section=Section.LIMITS, type=SECONDS, show_default="20s",
    ),
    *_SPEECH,
    Option(
        "workspace", "Folder of the videos that clients ask for, and of their jobs.",
        section=Section.FILES, type=FOLDER, show_default="in the user's cache",
    ),
    Option(
        "max_videos", "Videos that wait to be made.",
        section=Section.LIMITS, type=COUNT, metavar="N", show_default="20",
    ),
    Option(
        "max_video_s", "Length of a video.",
        section=Section.LIMITS, type=SECONDS, show_default="10min",
    ),
    Option(
        "max_video_pixels", "Height times width of a video.",
        section=Section.LIMITS, type=COUNT, metavar="N", show_default="921600",
    ),
    Option(
        "max_voice_bytes", "Bytes of the uploaded voice of a video.",
        section=Section.LIMITS, type=COUNT, metavar="N", show_default="104857600",
    ),
    Option(
        "keep_videos_s", "A video is deleted so long after its end.",
        section=Section.LIMITS, type=SECONDS, show_default="24h",
    ),
    toggle(
        "prepare", "Keep a session ready for the portrait chosen last, so that it begins at once.",
        section=Section.LIMITS, default="on",
    ),
    toggle(
        "mark", "Note in the metadata of every stream that it is synthetic.",
        section=Section.VIDEO, default="on",
    ),
    *options_named(
        "infer_frames", "sample_steps", "base_seed", "device", "precision", "fp8", "lora", "decoder",
        "vram", "ram", "offload_model", "offload_kv_cache", "kv_precision", "fallback", "allow_degrade",
        "gpus", "sign", "quiet", "verbose", "debug",
    ),
)  # fmt: skip


@command(
    "serve",
    _OPTIONS,
    given_only=True,
    examples=(
        "lipcast serve",
        'lipcast serve --model ckpt/Wan2.2-S2V-14B --size "704*384" --max_sessions 1',
        "lipcast serve --host 0.0.0.0 --tls_cert cert.pem --tls_key key.pem",
        "lipcast serve --llm_url http://127.0.0.1:11434/v1 --llm_model llama3.2 \\\n"
        "    --asr_url http://127.0.0.1:8001/v1",
    ),
)
def serve(console: Console, **flags: Any) -> None:
    """Talk to a portrait in a browser.

    Open the address that is printed. Sound goes in as it is spoken, pictures with their sound come out, over
    one TCP port; programs use the same WebSocket. Only this machine can connect unless --host says
    otherwise; then every request needs the token.
    """
    accepted_flags(flags)
    settings = _settings(flags)
    options = generate_options(flags)

    from lipcast.serve.hub import Hub
    from lipcast.serve.logs import write_logs
    from lipcast.serve.run import RunningServer
    from lipcast.serve.video_queue import VideoQueue
    from lipcast.speech.services import find_services

    speech = find_services(**{name: flags[name] for name in _SPEECH_NAMES if name in flags})
    write_logs()
    videos = VideoQueue(settings, options=options, made_with=_made_with(flags))
    hub = Hub(
        lambda: _load(flags),
        settings,
        options=options,
        speech=speech,
        device_bytes=_device_bytes,
        videos=videos,
    )
    server = RunningServer(hub)
    console.log(f"open {server.url} (Ctrl-C ends the server)")
    server.run()


def _settings(flags: Mapping[str, Any]) -> ServeSettings:
    from lipcast.serve.settings import ServeSettings

    secrets = {name: flags.get(name) or secret(variable) for name, variable in _SECRETS.items()}
    given = options_from(
        ServeSettings,
        {**flags, **{name: value for name, value in secrets.items() if value}},
        allowed_origins=tuple(flags.get("allow_origin", ())),
        ice_servers=tuple(flags.get("ice_server", ())),
        marked=flags.get("mark", True),
        signing=signing_key(flags.get("sign")),
    )
    if given.signing is not None:
        given.signing.check()
    return given.with_token()


def _made_with(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the job of a video says of the model."""
    from lipcast.serve.video_queue import made_with

    decoder = flags.get("decoder")
    return made_with(
        model=str(flags.get("model", DEFAULT_MODEL)),
        device=flags.get("device"),
        precision=precision(flags),
        loras=list(flags.get("lora", ())),
        decoder=None if decoder is None else str(decoder),
        memory=asdict(options_from(MemoryOptions, flags)),
        gpus=asdict(gpu_options(flags)),
    )


def _load(flags: Mapping[str, Any]) -> Lipcast:
    from lipcast.api import load

    decoder = flags.get("decoder")
    return load(
        flags.get("model", DEFAULT_MODEL),
        device=flags.get("device"),
        precision=precision(flags),
        loras=flags.get("lora", ()),
        decoder=None if decoder is None else Path(decoder),
        expected=generate_options(flags),
        memory_options=options_from(MemoryOptions, flags),
        gpu_options=gpu_options(flags),
    )


def _device_bytes(model: Any) -> int:
    manager = getattr(getattr(model, "backend", None), "manager", None)
    return 0 if manager is None else int(manager.used_bytes())
