"""`lipcast generate`: one portrait, one voice, one video file.

Input: the given options. Output: an MP4 that grows block by block (`long_video` makes long ones), and what
was done as a line or as one JSON document. Whatever ends the work early, the finished frames stay in the
file.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.command import command
from lipcast.cli.console import Console, print_json
from lipcast.cli.long_video import is_long, make_long
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.options import OPTIONS
from lipcast.cli.request import DEFAULT_MODEL, GenerateRequest, read_request
from lipcast.cli.result import document, length, summary, unfinished
from lipcast.config.models import VIDEO_FPS
from lipcast.env import launched
from lipcast.media.mp4 import num_pictures
from lipcast.media.signing import sign_video
from lipcast.media.target import claimed

if TYPE_CHECKING:
    from PIL.Image import Image

    from lipcast.engine.session import Session
    from lipcast.media.audio import AudioFile
    from lipcast.media.characters import Character


_NOTICES = {
    DEFAULT_MODEL: "the included model `tiny` knows illustrated portraits only; a photo comes out as one"
}
"""Notes about a model, said before its first video."""


@command(
    "generate",
    OPTIONS,
    given_only=True,
    when_stopped="nothing was written",
    examples=(
        "lipcast generate --image me.png --audio hello.wav -o out.mp4",
        'lipcast generate --image me.png --audio hello.wav --prompt "a calm man" \\\n'
        '    --ckpt_dir ckpt/Wan2.2-S2V-14B --size "704*384" --infer_frames 48',
        "lipcast generate --image me.png --audio hello.wav --ckpt_dir ckpt/Wan2.2-S2V-14B \\\n"
        "    --precision int8 --lora style.safetensors:0.8",
        "lipcast generate --image me.png --audio hello.wav --ckpt_dir ckpt/Wan2.2-S2V-14B \\\n"
        "    --gpus 4",
        'lipcast generate --image me.png --text "Hello there." -o out.mp4',
        "lipcast generate --image two.png --character face1:anna.wav \\\n    --character face2:ben.wav",
    ),
)
def generate(console: Console, **flags: Any) -> None:
    """Make a video of a portrait that speaks.

    The portrait decides the aspect, the audio decides the length; words are spoken with --text. The file can
    be watched while it is written; Ctrl-C keeps what is finished. Audio over 10 min is made in segments of a
    minute: the file appears at the end, the same command continues after an interruption, and
    `lipcast job watch` shows the progress.

    The flags of the public Live Avatar scripts work as they are, with underscores or dashes. A flag that
    this version cannot follow (--enable_tts, --use_dataset and so on) is refused with the reason, never
    ignored.
    """
    if _served_as_rank():
        return
    meter = Meter()
    request = read_request(flags)
    portrait, characters = _check(request, console)
    sounds = cache(
        partial(_open_sounds, request)
    )  # decoded once to be measured, whoever asks first
    long = is_long(request, sounds)
    automatic = "output" in request.randomised_fields
    with (
        claimed(request.output, automatic=automatic) as output,
        ProgressBar(meter, wanted=not console.quiet) as bar,
    ):
        request = replace(request, output=output)
        made = (
            make_long(request, meter, bar, console)
            if long
            else _make(
                replace(request, characters=characters), (portrait, sounds()), meter, bar, console
            )
        )
    if console.as_json:
        print_json(made)
    console.log(f"{request.output}: {summary(meter, made['frames'])}")
    if made["ranks"]:
        console.log(f"{made['layout']['layout']}; {made['bottleneck']}")


def _served_as_rank() -> bool:
    """Serve as a non-zero torchrun rank if this process is one; return True when done."""
    together = launched()
    if together is None or together.rank == 0:
        return False
    from lipcast.parallel.torchrun import serve_launched

    serve_launched(together)
    return True


def _check(request: GenerateRequest, console: Console) -> tuple[Image, tuple[Character, ...]]:
    """Check before minutes of loading that everything is there and usable.

    Returns the portrait, and the characters with the masks of their regions.
    """
    from lipcast.media.face_crop import note_faces
    from lipcast.media.image import load_portrait
    from lipcast.weights.checkpoint import ALL_PARTS, MODEL_PARTS, checkpoint_dir, find_checkpoint

    portrait = load_portrait(request.image, crop=request.options.crop)
    characters = request.characters
    if characters:
        from lipcast.media.characters import find_regions

        masks = find_regions([each.region for each in characters], portrait, request.options)
        characters = tuple(
            replace(each, region=mask) for each, mask in zip(characters, masks, strict=True)
        )
    elif request.options.crop == "center":
        note_faces(portrait, str(request.image))
    if isinstance(request.prompt, Path):
        from lipcast.weights.prompts import read_embedding

        read_embedding(request.prompt)
    is_embedded = isinstance(request.prompt, Path) and not request.direction.prompts
    need = MODEL_PARTS if is_embedded else ALL_PARTS
    find_checkpoint(checkpoint_dir(request.model), need=need)
    if notice := _NOTICES.get(request.model):
        console.warn(notice)
    return portrait, characters


def _open_sounds(request: GenerateRequest) -> tuple[AudioFile | None, ...]:
    """Open the voice, or that of every character that has one."""
    from lipcast.media.voices import opened

    return opened(request.voices, clean=request.options.clean_audio)


def _make(
    request: GenerateRequest,
    inputs: tuple[Image, tuple[AudioFile | None, ...]],
    meter: Meter,
    bar: ProgressBar,
    console: Console,
) -> dict[str, Any]:
    """Load the model, generate and write; returns the document of what was done."""
    console.detail(f"loading model {request.model}")
    from lipcast.api import load

    model = load(
        request.model,
        device=request.device,
        precision=request.precision,
        loras=request.loras,
        decoder=request.decoder,
        expected=request.options,
        memory_options=request.memory,
        gpu_options=request.gpus,
    )
    portrait, sounds = inputs
    characters = tuple(
        replace(each, audio=sound) for each, sound in zip(request.characters, sounds, strict=False)
    )
    options = replace(request.options, crop="center")  # `portrait` is cut out already
    with (
        closing(model),
        model.stream(
            image=portrait,
            audio=None if characters else sounds[0],
            characters=characters,
            prompt=request.prompt,
            direction=request.direction,
            options=options,
        ) as session,
    ):
        console.detail(f"making {session.num_frames} frames")
        meter.start(session.num_blocks)
        try:
            _record(session, request.output, meter, bar)
        except (KeyboardInterrupt, Exception) as error:
            num_kept = num_pictures(request.output) if meter.frames_done else 0
            if not num_kept:
                raise
            kept = f"kept in {request.output}: {length(num_kept)}"
            done = _document(request, meter, session, console) | {
                "frames": num_kept,
                "duration_s": num_kept / VIDEO_FPS,
            }
            raise unfinished(error, kept, done) from error
        if request.signing is not None:
            sign_video(request.output, request.signing)
        return {"status": "finished"} | _document(request, meter, session, console)


def _record(session: Session, output: Path, meter: Meter, bar: ProgressBar) -> None:
    """Write every block as it comes. The file is opened when there is a frame to write."""
    from lipcast.api import save_blocks

    before = _stamp(output)
    try:
        # Closing the generator closes the file, also when the interrupt comes between two blocks.
        with closing(save_blocks(meter.watch(session), output)) as blocks:
            for block in blocks:
                meter.count(len(block.frames))
                bar.update()
    finally:
        # An interrupt while the first block is written leaves a part of it in the file.
        if not meter.frames_done and _stamp(output) != before:
            meter.frames_done = num_pictures(output)
    meter.stop()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells two states of a file apart; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _document(
    request: GenerateRequest, meter: Meter, session: Session, console: Console
) -> dict[str, Any]:
    """Return what was done, as JSON values."""
    return document(
        request,
        meter,
        console,
        num_frames=meter.frames_done,
        described=session.spec.described(),
        report=session.report(),
    )
