"""`lipcast convert`: a checkpoint with adapters merged and weights quantised, that loads in seconds.

Input: a checkpoint, a precision, adapters. Output: a folder of the same layout, and what it cost in
accuracy, as lines or as one JSON document.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipcast.cli.command import Option, Section, command
from lipcast.cli.console import Console
from lipcast.cli.meter import StepBar
from lipcast.cli.options import CONSOLE, LORA, MODEL
from lipcast.cli.request import DEFAULT_MODEL
from lipcast.cli.types import FOLDER
from lipcast.config.units import parse_bytes

if TYPE_CHECKING:
    from lipcast.config.precision import StoredPrecision

_PRECISIONS: tuple[StoredPrecision, ...] = ("fp32", "fp16", "bf16", "fp8", "int8", "int4", "nvfp4")
_NUM_WORST = 5


@command(
    "convert",
    (
        Option(
            "precision", "Precision of the transformer's weights.",
            section=Section.FILES, type=click.Choice(_PRECISIONS), required=True,
        ),
        Option(
            "output", "Folder to make. It appears when everything is in it.",
            section=Section.FILES, also=("-o",), type=FOLDER,
            show_default="the model's name and the precision",
        ),
        Option(
            "text_precision", "Precision of the text encoder's weights.",
            section=Section.FILES, type=click.Choice(_PRECISIONS), show_default="unchanged",
        ),
        Option(
            "shard_size", "Maximum size of a file.",
            section=Section.FILES, metavar="BYTES", default="2GiB", show_default=True,
        ),
        MODEL, LORA, *CONSOLE,
    ),
    when_stopped="finished files are kept, and the same command continues",
    examples=(
        "lipcast convert --ckpt_dir live-avatar-14b --precision int4 -o live-avatar-int4",
        "lipcast convert --model tiny --precision int8 --lora style.safetensors:0.8",
        "lipcast generate --ckpt_dir live-avatar-int4 --image me.png --audio hello.wav",
    ),
)  # fmt: skip
def convert(
    console: Console,
    *,
    precision: StoredPrecision,
    output: Path | None,
    text_precision: StoredPrecision | None,
    shard_size: str,
    model: str | None,
    lora: tuple[str, ...],
) -> None:
    """Merge adapters and quantise weights into a folder.

    One tensor is in memory at a time, whatever the size of the model. After an interruption the same command
    continues, and the result is the same byte for byte. `lipcast.json` in the folder says what it was made
    from; `lipcast models --verify` hashes it.
    """
    model = model or DEFAULT_MODEL
    out = output or Path(f"{Path(model).name}-{precision}")
    shard_bytes = parse_bytes(shard_size, name="shard_size")
    from lipcast.weights.checkpoint import checkpoint_dir
    from lipcast.weights.convert import ConvertRequest
    from lipcast.weights.convert import convert as convert_files
    from lipcast.weights.lora import parse_lora

    request = ConvertRequest(
        source=checkpoint_dir(model),
        out=out,
        precision=precision,
        loras=tuple(parse_lora(word) for word in lora),
        text_precision=text_precision,
        shard_bytes=shard_bytes,
    )
    began = time.perf_counter()
    with StepBar(wanted=not (console.quiet or console.as_json)) as bar:
        manifest = convert_files(request, progress=bar.update)
    document = _document(out, manifest) | {"elapsed_s": time.perf_counter() - began}
    if console.as_json or not console.quiet:
        console.result(document, _as_text(document))


def _document(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was made, as JSON values."""
    entries = manifest["files"].values()
    layers = [layer for entry in entries for layer in entry.get("layers", ())]
    return {
        "status": "finished",
        "output": str(out.resolve()),
        "bytes": sum(entry["bytes"] for entry in entries),
        "recipe": manifest["recipe"],
        "num_quantised_layers": len(layers),
        "weight_error": _mean(layers, "weight_error"),
        "output_error": _mean(layers, "output_error"),
        "layers": layers,
    }


def _mean(layers: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(layer[key] for layer in layers) / max(1, len(layers)))


def _as_text(document: Mapping[str, Any]) -> str:
    """Return the document as lines for a person: the least exact layers, and the mean."""
    recipe, layers = document["recipe"], document["layers"]
    merged = ", ".join(f"{lora['file']} x {lora['weight']:g}" for lora in recipe["loras"])
    lines = [f"{document['output']}: {recipe['precision']}, {document['bytes'] / 1e9:.2f} GB"]
    lines += [f"merged: {merged}"] if merged else []
    if layers:
        worst = sorted(layers, key=lambda layer: -layer["output_error"])[:_NUM_WORST]
        lines += ["", f"{'relative error of':<44}{'weight':>9}{'output':>9}"]
        rows = [
            (f"mean of {len(layers)} layers", document["weight_error"], document["output_error"])
        ]
        rows += [(w["layer"], w["weight_error"], w["output_error"]) for w in worst]
        lines += [f"  {name:<42}{weight:>9.4f}{output:>9.4f}" for name, weight, output in rows]
    return "\n".join(lines)
