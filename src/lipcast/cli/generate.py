"""`lipcast generate`: one portrait, one voice, one video file.

Input: the given flags. Output: an MP4 that grows block by block, and what was done as a line or as
one JSON document. Whatever ends the work early, the finished frames stay in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipcast.cli.explain import explain
from lipcast.cli.judge import Given
from lipcast.cli.meter import Meter, ProgressBar
from lipcast.cli.model_configs import EMBEDDED
from lipcast.cli.request import GenerateRequest, read_request
from lipcast.cli.talk import Talk, print_json
from lipcast.core.config import VIDEO_FPS
from lipcast.errors import LipcastError

if TYPE_CHECKING:
    from lipcast.engine.session import Session


_NOTICES = {
    EMBEDDED: "the embedded model knows illustrated portraits only; a photo comes out as one"
}
"""What to know of a model before looking at its videos."""


class UnfinishedError(LipcastError):
    """The video ended early, and its finished frames are kept. `document` is what was done."""

    def __init__(self, sentence: str, *, exit_code: int, document: Mapping[str, Any]) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.document = document


def generate(given: Mapping[str, Given]) -> None:
    """Make a video of a portrait that speaks.

    The picture decides the aspect, the sound decides the length. The file can be watched while it
    is written; Ctrl-C keeps what is finished.

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
    talk = Talk.begin(given)
    meter = Meter()
    request = read_request(given)
    with ProgressBar(meter, wanted=not talk.quiet) as bar:
        document = _make(request, meter, bar, talk)
    if talk.as_json:
        print_json(document)
    talk.note(f"{request.output}: {_summary(meter)}")
    if document["ranks"]:
        talk.note(f"{document['layout']['layout']}; {document['bottleneck']}")


def _make(request: GenerateRequest, meter: Meter, bar: ProgressBar, talk: Talk) -> dict[str, Any]:
    """Load, generate, write; returns the document of what was done."""
    from lipcast.media.image import load_portrait

    portrait = load_portrait(request.image)  # before the model, which may take minutes
    _check_model(request)
    if notice := _NOTICES.get(request.model):
        talk.warn(notice)
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
            document = _document(request, meter, session, talk)
            raise _unfinished(error, request, meter, document) from error
        return {"status": "finished"} | _document(request, meter, session, talk)


def _check_model(request: GenerateRequest) -> None:
    """Find out before minutes of loading that a part of the model is not there."""
    from lipcast.weights.checkpoint import ALL_PARTS, MODEL_PARTS, checkpoint_dir, find_checkpoint

    if isinstance(request.prompt, Path):
        from lipcast.weights.prompts import read_embedding

        read_embedding(request.prompt)
    need = MODEL_PARTS if isinstance(request.prompt, Path) else ALL_PARTS
    find_checkpoint(checkpoint_dir(request.model), need=need)


def _record(session: Session, output: Path, meter: Meter, bar: ProgressBar) -> None:
    """Write every block as it comes. The file is opened when there is a frame to write."""
    from lipcast.api import save_blocks

    # Closing the generator closes the file, also when the interrupt comes between two blocks.
    with closing(save_blocks(meter.watch(session), output)) as blocks:
        for block in blocks:
            meter.count(len(block.frames))
            bar.update()
    meter.stop()


def _unfinished(
    error: BaseException, request: GenerateRequest, meter: Meter, document: Mapping[str, Any]
) -> UnfinishedError:
    """What to say of a video that ended early because of `error`."""
    explanation = explain(error)
    return UnfinishedError(
        f"{explanation.sentence}; kept in {request.output}: {_length(meter)}",
        exit_code=explanation.exit_code,
        document={
            "status": "stopped" if explanation.was_interrupted else "failed",
            "reason": explanation.sentence,
            **document,
        },
    )


def _length(meter: Meter) -> str:
    return f"{meter.frames_done} frames, {meter.frames_done / VIDEO_FPS:.2f} s"


def _summary(meter: Meter) -> str:
    speed = f"{meter.frames_per_second:.1f} frames/s"
    return f"{_length(meter)}, at {speed}, first frame after {meter.first_frame_s or 0.0:.1f} s"


def _document(
    request: GenerateRequest, meter: Meter, session: Session, talk: Talk
) -> dict[str, Any]:
    """Everything that was done, as JSON values."""
    geometry, report = session.spec.geometry, session.report()
    return {
        "output": str(request.output.resolve()),
        "frames": meter.frames_done,
        "duration_s": meter.frames_done / VIDEO_FPS,
        "seed": request.options.seed,
        "frames_per_second": meter.frames_per_second,
        "time_to_first_frame_s": meter.first_frame_s,
        "elapsed_s": meter.elapsed_s,
        "seconds_by_part": {**report["seconds"], "mux_s": meter.mux_s},
        "peak_rss_bytes": meter.peak_rss_bytes,
        "peak_gpu_bytes": meter.peak_gpu_bytes,
        "memory": report.get("memory"),
        **{name: report.get(name) for name in ("layout", "ranks", "bottleneck")},
        "request": {k: v for k, v in asdict(request).items() if k != "accepted"},
        "infer_frames": session.spec.infer_frames,
        "steps": session.spec.flow.num_steps,
        "geometry": {**asdict(geometry), "tokens_per_frame": geometry.tokens_per_frame},
        "accepted": dict(request.accepted),
        "warnings": list(talk.warnings),
    }
