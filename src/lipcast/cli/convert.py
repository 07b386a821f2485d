"""`lipcast convert`: a checkpoint with adapters merged and weights quantised, that loads in seconds.

Input: a checkpoint, a precision, adapters. Output: a folder of the same layout, and what it cost in
accuracy, as lines or as one JSON document.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.meter import StepBar
from lipcast.cli.validate import RawFlags
from lipcast.errors import UsageError
from lipcast.planning.hardware import parse_bytes

if TYPE_CHECKING:
    from lipcast.weights.schemes import Precision

_SHARED = frozenset({"model", "lora", "json", "quiet", "verbose", "debug"})
_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
_NUM_WORST = 5
CONVERT_FLAGS: tuple[Flag, ...] = (
    Flag("precision", Group.FILES, Kind.TEXT, f"Of the transformer: {', '.join(_PRECISIONS)}."),
    Flag(
        "output",
        Group.FILES,
        Kind.TEXT,
        "The folder to make. It appears when everything is in it.",
        default="the model's name and the precision",
        also=("-o",),
    ),
    Flag(
        "text_precision",
        Group.FILES,
        Kind.TEXT,
        "Of the text encoder.",
        default="as it is",
    ),
    Flag("shard_size", Group.FILES, Kind.TEXT, "Size of the files.", default="2GiB"),
    *(flag for flag in FLAGS if flag.name in _SHARED),
)


def convert(given: Mapping[str, RawFlags]) -> None:
    """Merge adapters and quantise weights once, into a folder that loads by mapping.

    One tensor is in memory at a time, whatever the size of the model. Killed at any moment, the same
    command continues, and the result is the same byte for byte. `lipcast.json` in it says what it
    was made from; `lipcast models --verify` hashes it.

        lipcast convert --ckpt_dir live-avatar-14b --precision int4 -o live-avatar-int4

        lipcast convert --model tiny --precision int8 --lora style.safetensors:0.8

    Then: lipcast generate --ckpt_dir live-avatar-int4 --image me.png --audio hello.wav
    """
    talk = Console.begin(given)
    model, precision = str(given.get("model", "tiny")), _precision(given, "precision")
    if precision is None:
        raise UsageError(f"--precision: expected one of {', '.join(_PRECISIONS)}, got none")
    out = Path(str(given.get("output", f"{Path(model).name}-{precision}"))).expanduser()
    shard_bytes = parse_bytes(str(given.get("shard_size", "2GiB")))
    from lipcast.weights.checkpoint import checkpoint_dir
    from lipcast.weights.convert import ConvertRequest
    from lipcast.weights.convert import convert as convert_files
    from lipcast.weights.lora import parse_lora

    request = ConvertRequest(
        source=checkpoint_dir(model),
        out=out,
        precision=precision,
        loras=tuple(parse_lora(line) for line in str(given.get("lora", "")).splitlines()),
        text_precision=_precision(given, "text_precision"),
        shard_bytes=shard_bytes,
    )
    began = time.perf_counter()
    with StepBar(wanted=not (talk.quiet or talk.as_json)) as bar:
        manifest = convert_files(request, progress=bar.update)
    document = _document(out, manifest) | {"elapsed_s": time.perf_counter() - began}
    if talk.as_json:
        print_json(document)
    elif not talk.quiet:
        typer.echo(_as_text(document))


def _precision(given: Mapping[str, RawFlags], name: str) -> Precision | None:
    value = str(given.get(name, ""))
    if not value:
        return None
    found = next((known for known in _PRECISIONS if known == value), None)
    if found is None:
        raise UsageError(f"--{name}: expected one of {', '.join(_PRECISIONS)}, got {value}")
    return found


def _document(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What was made, as JSON values."""
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
    """The document as lines for a person: the layers that lost most, and the mean."""
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
