"""`lipcast generate`: one portrait, one voice, one video file.

Input: the given flags. Output: an MP4 that grows block by block (`long_video` makes long ones), and what
was done as a line or as one JSON document. Whatever ends the work early, the finished frames stay in the
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.console import Console, print_json
from lipcast.cli.long_video import is_long, make_long
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.model_configs import EMBEDDED
from lipcast.cli.request import GenerateRequest, read_request
from lipcast.cli.result import document, length, summary, unfinished
from lipcast.cli.validate import RawFlags
from lipcast.env import launched

if TYPE_CHECKING:
    from PIL.Image import Image

    from lipcast.engine.session import Session


_NOTICES = {
    EMBEDDED: "the embedded model knows illustrated portraits only; a photo comes out as one"
}
"""What to know of a model before looking at its videos."""


def generate(given: Mapping[str, RawFlags]) -> None:
    """Make a video of a portrait that speaks.

    The picture decides the aspect, the sound decides the length. The file can be watched while it
    is written; Ctrl-C keeps what is finished. A sound over 10 min is made in segments of a minute, and
    the file is there in the end: the same command goes on after whatever ended it, and
    `lipcast job watch` shows how far it is.

        lipcast generate --image me.png --audio hello.wav -o out.mp4

    The flags of the public Live Avatar scripts work as they are, with underscores or dashes:

        lipcast generate --image me.png --audio hello.wav --prompt "a calm man" \\
          --ckpt_dir ckpt/Wan2.2-S2V-14B --size "704*384" --infer_frames 48

    Smaller weights, and adapters, while loading:

        lipcast generate --image me.png --audio hello.wav --ckpt_dir ckpt/Wan2.2-S2V-14B \\
          --precision int8 --lora style.safetensors:0.8

    Several GPUs at one video, started and watched from here, or joined under torchrun:

        lipcast generate --image me.png --audio hello.wav --ckpt_dir ckpt/Wan2.2-S2V-14B --gpus 4

    A public flag that this version cannot follow (--pose_video, --enable_tts ...) is refused with
    the reason, never ignored.
    """
    if _is_launched_rank():
        return
    talk = Console.begin(given)
    meter = Meter()
    request = read_request(given)
    portrait = _check(request, talk)
    long = is_long(request)
    with ProgressBar(meter, wanted=not talk.quiet) as bar:
        made = (
            make_long(request, meter, bar, talk)
            if long
            else _make(request, portrait, meter, bar, talk)
        )
    if talk.as_json:
        print_json(made)
    talk.note(f"{request.output}: {summary(meter, made['frames'])}")
    if made["ranks"]:
        talk.note(f"{made['layout']['layout']}; {made['bottleneck']}")


def _is_launched_rank() -> bool:
    """Whether torchrun has started this process to help another; it has done so then."""
    together = launched()
    if together is None or together.rank == 0:
        return False
    from lipcast.parallel.torchrun import serve_launched

    serve_launched(together)
    return True


def _check(request: GenerateRequest, talk: Console) -> Image:
    """Find out before minutes of loading what is not there or cannot be used; returns the portrait."""
    from lipcast.media.image import load_portrait
    from lipcast.weights.checkpoint import ALL_PARTS, MODEL_PARTS, checkpoint_dir, find_checkpoint

    portrait = load_portrait(request.image)
    if isinstance(request.prompt, Path):
        from lipcast.weights.prompts import read_embedding

        read_embedding(request.prompt)
    need = MODEL_PARTS if isinstance(request.prompt, Path) else ALL_PARTS
    find_checkpoint(checkpoint_dir(request.model), need=need)
    if notice := _NOTICES.get(request.model):
        talk.warn(notice)
    return portrait


def _make(
    request: GenerateRequest, portrait: Image, meter: Meter, bar: ProgressBar, talk: Console
) -> dict[str, Any]:
    """Load, generate, write; returns the document of what was done."""
    talk.detail(f"loading model {request.model}")
    from lipcast.api import load

    model = load(
        request.model,
        device=request.device,
        precision=request.precision,
        loras=request.loras,
        decoder=request.decoder,
        expected=request.options,
        **asdict(request.memory),
        **asdict(request.gpus),
    )
    options = asdict(request.options)
    with (
        closing(model),
        model.stream(
            image=portrait, audio=request.audio, prompt=request.prompt, **options
        ) as session,
    ):
        talk.detail(f"making {session.num_frames} frames")
        meter.start(session.num_blocks)
        try:
            _record(session, request.output, meter, bar)
        except (KeyboardInterrupt, Exception) as error:
            if not meter.frames_done:
                raise
            kept = f"kept in {request.output}: {length(meter.frames_done)}"
            raise unfinished(error, kept, _document(request, meter, session, talk)) from error
        return {"status": "finished"} | _document(request, meter, session, talk)


def _record(session: Session, output: Path, meter: Meter, bar: ProgressBar) -> None:
    """Write every block as it comes. The file is opened when there is a frame to write."""
    from lipcast.api import save_blocks

    # Closing the generator closes the file, also when the interrupt comes between two blocks.
    with closing(save_blocks(meter.watch(session), output)) as blocks:
        for block in blocks:
            meter.count(len(block.frames))
            bar.update()
    meter.stop()


def _document(
    request: GenerateRequest, meter: Meter, session: Session, talk: Console
) -> dict[str, Any]:
    """Everything that was done, as JSON values."""
    return document(
        request,
        meter,
        talk,
        num_frames=meter.frames_done,
        described=session.spec.described(),
        report=session.report(),
    )
