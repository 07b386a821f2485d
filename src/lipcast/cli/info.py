"""`lipcast info`: what a model is, and how large everything is, part by part, before it is loaded.

Input: the given flags. Output: a table, or one JSON document. Everything is computed from the
configurations; nothing is loaded, so it works for a model that is not on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from lipcast.cli.command import command
from lipcast.cli.console import Console
from lipcast.cli.options import options_named
from lipcast.cli.request import DEFAULT_MODEL, generate_options
from lipcast.config.generate_options import GenerateOptions
from lipcast.config.models import Models
from lipcast.config.units import format_bytes
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.planning import sizes, tensors
from lipcast.weights.configs import read_configs

_DEFAULT_SIDES = (704, 384)
_PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
"""Precision of the computation; weights and rings have the same."""


@command(
    "info",
    options_named(
        "model", "size", "infer_frames", "sample_steps", "fold_last_step", "json", "debug"
    ),
    given_only=True,
    examples=(
        "lipcast info",
        'lipcast info --model 14b --size "704*384" --infer_frames 48',
    ),
)
def info(console: Console, **flags: Any) -> None:
    """Show the networks, shapes and memory of a model.

    Nothing is loaded. `--model 14b` shows the published 14B model without its files.
    """
    model = flags.get("model", DEFAULT_MODEL)
    document = describe(model, read_configs(model), generate_options(flags))
    console.result(document, _as_text(document))


def describe(model: str, configs: Models, options: GenerateOptions) -> dict[str, Any]:
    """Return everything that `lipcast info` shows, as JSON values."""
    height, width = _sides(options.size)
    spec = video_spec(options, configs.dit, configs.vae, height=height, width=width)
    geometry = spec.geometry
    return {
        "model": model,
        "networks": {
            "transformer": tensors.num_parameters(tensors.dit_tensors(configs.dit)),
            "autoencoder": tensors.num_parameters(tensors.vae_tensors(configs.vae)),
            "text encoder": tensors.num_parameters(tensors.text_tensors(configs.text)),
            "speech encoder": tensors.num_speech_parameters(configs.speech),
        },
        "video": {
            "height": geometry.height,
            "width": geometry.width,
            "infer_frames": spec.infer_frames,
            "steps": spec.flow.num_steps,
            "video_frames_per_block": spec.video_frames_per_block,
            "tokens_per_frame": geometry.tokens_per_frame,
            "tokens_per_block": geometry.tokens_per_frame * geometry.latents_per_block,
            "window_latent_frames": geometry.window,
            "sink_tokens": geometry.sink_tokens,
        },
        "bytes": {precision: _bytes(configs, spec, precision) for precision in _PRECISIONS},
        "config": asdict(configs.dit),
    }


def _sides(size: str | None) -> tuple[int, int]:
    """Return the sides of the size as height and width: the picture that `info` supposes."""
    if size is None:
        return _DEFAULT_SIDES
    height, width = re.findall(r"\d+", size)
    return int(height), int(width)


def _bytes(configs: Models, spec: VideoSpec, precision: Literal["fp32", "bf16"]) -> dict[str, int]:
    """Return the bytes by part of one session that computes a block at a time."""
    dit, vae, geometry = configs.dit, configs.vae, spec.geometry
    layers, area = dit.num_layers, (geometry.latent_height, geometry.latent_width)
    weights = tensors.num_parameters(tensors.dit_tensors(dit)) * sizes.plain_bytes(precision)
    ring = layers * sizes.ring_layer_bytes(dit, geometry, precision)
    sink = sizes.sink_layer_bytes(dit, geometry, precision)
    sink += sizes.placed_layer_bytes(dit, geometry, precision)
    parts = {
        "transformer weights": weights,
        "autoencoder weights": sizes.vae_bytes(vae, precision),
        "speech encoder weights": sizes.speech_encoder_bytes(configs.speech),
        "KV ring of one step": ring,
        "KV rings of all steps": ring * spec.flow.num_steps,
        "sink": layers * sink,
        "text keys and values": layers * sizes.text_kv_layer_bytes(dit, precision),
        "decoder state": sizes.decoder_state_bytes(vae, *area, precision=precision),
        "working memory, transformer": sizes.tick_bytes(dit, geometry, precision, num_lanes=1),
        "working memory, decoder": sizes.decode_work_bytes(
            vae, geometry.height, geometry.width, precision=precision
        ),
    }
    return {**parts, "sum": _sum(parts)}


def _sum(parts: Mapping[str, int]) -> int:
    """Return the bytes held at once: one working memory at a time, every ring counted once."""
    kept = {name: size for name, size in parts.items() if not name.startswith("working")}
    working = [size for name, size in parts.items() if name.startswith("working")]
    return sum(kept.values()) - parts["KV ring of one step"] + max(working)


def _as_text(document: Mapping[str, Any]) -> str:
    """Return the document as lines for a person."""
    networks, video, by_precision = document["networks"], document["video"], document["bytes"]
    lines = [f"model {document['model']}", "", "networks, in parameters"]
    lines += [f"  {name:<28}{count:>16,}" for name, count in networks.items()]
    lines += ["", f"a video of {video['width']} x {video['height']} pixels"]
    lines += [f"  {name.replace('_', ' '):<28}{value:>16,}" for name, value in video.items()]
    lines += ["", f"memory{'fp32':>38}{'bf16':>14}"]
    for part, size in by_precision["fp32"].items():
        halved = format_bytes(by_precision["bf16"][part])
        lines.append(f"  {part:<28}{format_bytes(size):>14}{halved:>14}")
    return "\n".join(lines)
