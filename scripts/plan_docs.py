"""Write docs/plan.md: every figure in it is computed by the planner.

Run from the root of the project: .venv/bin/python scripts/plan_docs.py
"""

from __future__ import annotations

import contextlib
import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

from fsdp_arithmetic import (
    USABLE_GIB,
    explain_fsdp,
    published_figures,
    rival_resident_bytes,
)

from lipcast.cli.plan import plan, plan_request
from lipcast.cli.plan_view import plan_text
from lipcast.config.geometry import Geometry
from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.units import GIB
from lipcast.planning import costs
from lipcast.planning.hardware import gpu
from lipcast.planning.kernel_counts import kernel_counts
from lipcast.planning.planner import make_plan

TARGET = Path(__file__).parents[1] / "docs" / "plan.md"
CARDS = (
    (8, "rtx4060", "64GB"),
    (12, "rtx3060", "32GB"),
    (16, "rtx4060ti", "32GB"),
    (24, "rtx4090", "64GB"),
    (48, "l40s", "64GB"),
    (80, "h100", "64GB"),
)
IN_FULL = 12
"""The card whose example is shown with its alternatives and its ladder."""
FOUR_CARDS = (
    "--gpu rtx4090 --gpus 4 --ram 128GB --num_gpus_dit 3 --enable_vae_parallel "
    '--size "688*368" --infer_frames 32 --sample_steps 3 --no_fold_last_step'
)

HEAD = """\
# What goes where: `lipcast plan`

Every tensor's size is known from the model's configuration before anything is loaded. So Lipcast
plans first: it takes a budget of GPU and host memory and chooses, for every part, where it lives and
in which precision, for the least predicted time. `lipcast plan` shows the plan for any card, also
for one that you do not have; it needs no GPU, no weights and no torch.

    lipcast plan                                      this machine
    lipcast plan --gpu rtx4090 --ram 32GB             another one
    lipcast plan --gpu rtx4060ti --vram 10GB          a part of a card
    lipcast plan --vram 12GiB                         without a GPU: any card with that memory
    lipcast plan --gpu rtx4090 --gpus 4 --ram 128GB   several cards, with a timeline
    lipcast plan --gpu rtx4090 --json                 for programs

`12GB` is 12,000,000,000 bytes, `12GiB` is 12 x 2^30. `--ram` counts what Lipcast may take, pinned
memory included; without it and with `--gpu`, 64 GB are supposed.

## What is decided

| part | choices |
| --- | --- |
| weights of each layer | on the GPU; streamed from pinned host memory; streamed from the mapped file |
| precision of the weights | bf16, fp8 (computed in fp8 where the card can, \
restored in registers elsewhere); int8, int4 and nvfp4 (computed as stored on Blackwell) if asked |
| KV rings | one per evaluated step, on the GPU or streamed layer by layer; bf16 or fp8, int4 if asked |
| sink | on the GPU, or streamed with the layers |
| schedule | sequential (one lane a tick), or wavefront (all steps of consecutive blocks in \
one tick: weights cross the link once per block) |
| decoder | online always; whole pictures or tiles whose states wait in host memory |
| text encoder, speech encoder | host memory or mapped; the GPU where there is room |

A plan never exceeds its budget, and more memory never gives a slower plan. Where nothing fits, the
error names the smallest budget that works. Two equally fast plans: the plainer one is taken (bf16
before fp8, one lane before several, whole pictures before tiles).
"""

RESTS_ON = """
## What the figures rest on

Bytes of weights, rings, sink and decoder state are exact. Working memory is counted on the modules
themselves; cuDNN's workspaces, which cannot be counted that way, are an allowance.

Seconds to the first pictures: the published weights (33 GB in bf16, 17 GB once converted to fp8) are
read from the disk while those before are sent to the GPU, at 6.9 GB/s, and quantised there (41 bytes of
memory traffic a weight in fp8, counted); then host memory that is streamed from is locked, at 1.9 GB/s.
5 s for Python, torch and CUDA are assumed, and that kernels have been compiled before, that no adapter
is merged, and that the prompt is known: the text encoder embeds a new one on the CPU.

A block takes the longest of three streams: arithmetic (transformer and decoder), copies over the
link, reading from disk. Rates of the H100 were measured. **Rates of every other card are its data
sheet times the efficiency that the H100 reached against its own, and have not been measured.** A card
that is not in the table has the rates of one like it, rather slower than faster; the plan says of which.
On the machine itself they are measured before a model is loaded, and whether the card multiplies fp8 is
tried out. Cards before Ampere have no bf16 and compute in fp32.

The kernels between the matrix products are counted: the engine runs on tensors of the true shapes that
have no values, and every launch and every byte is added up ([checks on a GPU](gpu-check.md)). A step with
fp8 weights launches {triton[0]:,.0f} kernels and moves {triton[1]:.0f} GB beside its matrix products and
attention with `--kernels triton`, {plain[0]:,.0f} and {plain[1]:.0f} GB with `plain` ([kernels](kernels.md)).
That they move at the measured rate of a copy is an assumption, as are 10 µs for a launch of PyTorch's
own kernels, 25 µs where half of them are Triton's, and a disk of 2.5 GB/s. No step with fused kernels has
been measured on a card yet; nor has decoding with them, whose convolutions are assumed to reach half
the rate of matrix products.

Against measurements on one H100 (704x384, 48 frames, true shapes, random weights). The H100's four
rates are fitted to rows of this very table, so it shows that a tick is the longer of arithmetic and
copies; it is no test on figures that the planner had not seen:
"""

BETWEEN = """
The last rows are predictions of a whole step of Lipcast, beside the measured kernels of the public
implementation: not a check, but the room the prediction lies in.
"""

FSDP_HEAD = """
## Four cards with 24 GB: the published arithmetic

A published study of the public implementation shards the weights over four 24 GB cards with FSDP
and runs out of memory: 21.48 GB resident and 4.17 GB to unshard make 25.65 GB, {usable} GB are
usable. It gives no formula. These parts reproduce the figures (which are GiB):
"""

FSDP_TAIL = """
The 4.17 are identified: FSDP wraps the transformer blocks only, so everything outside them, the
twelve audio injectors among it, is one unit that is unsharded as a whole. The 21.48 are not "the
shard" (that is {shard:.2f}) but all that lies on the card beside it. They are explained, not
identified: the parts above are what the public code allocates with one denoising step per card and
the text encoder on the host, but they were chosen with the figure in view, and weights over three
cards with the text encoder beside them give {rival:.2f}, as close. That reading has no part that
shrinks with the frames; the first one has. The study does not say at which size it measured 32
frames: 688*368 is that of its command (at 704*384 it would be {short:.2f}). The 19.6 with online decode
could not be reproduced: in a pipeline with the decoder on a card of its own, online decode frees
nothing on the others.

Lipcast shards layer by layer, injectors included: two unsharded layers in bf16 take {ours:.2f} GiB
in place of 4.17. On such cards it rather streams, as the same request planned here shows:
"""


def document() -> str:
    """The whole page."""
    return "".join((HEAD, _examples(), _rests_on(), _calibration(), BETWEEN, _fsdp(), _several()))


def run(command: str) -> str:
    """What `lipcast plan …` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        plan.main(shlex.split(command), standalone_mode=False)
    return out.getvalue()


def _block(command: str, output: str) -> str:
    return f"\n```text\n$ lipcast plan {command}\n{output.rstrip()}\n```\n"


def _examples() -> str:
    rows = [
        "\n## One card\n\n| GPU memory | card | host | layers on the GPU | s per block | frames/s |"
    ]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    shown = []
    for memory, card, ram in CARDS:
        plan = make_plan(plan_request({"gpu": card, "ram": ram}))
        layers = len(plan.layers)
        rows.append(
            f"| {memory} GB | {plan.request.hardware.label} | {ram} | {plan.resident_layers} of "
            f"{layers}, rings {plan.resident_ring_layers} of {layers} | {plan.time.block_s:.2f} | "
            f"{plan.frames_per_s:.1f} |"
        )
        command = f"--gpu {card} --ram {ram}"
        text = run(command) if memory == IN_FULL else plan_text(plan)
        shown.append(f"\n### {memory} GB\n{_block(command, text)}")
    note = (
        "\nThe examples below are for the published 14B model at its default size. That of "
        f"{IN_FULL} GB is shown in full, with its alternatives and its ladder.\n"
    )
    return "\n".join(rows) + "\n" + note + "".join(shown)


def _rests_on() -> str:
    config = DiTConfig()
    at = Geometry.of(config, VAEConfig(), height=704, width=384, infer_frames=48)
    figures = {}
    for name in get_args(KernelName):
        counts = kernel_counts("fp8", "bf16", num_lanes=1, reading="as stored", kernels=name)
        launches = round(costs.launches(counts, config, num_lanes=1), -1)
        figures[name] = launches, costs.lane_traffic_bytes(counts, config, at) / 1e9
    return RESTS_ON.format(**figures)


def _calibration() -> str:
    rows = ["\n| what | predicted, ms | measured, ms | error |", "| --- | --- | --- | --- |"]
    for name, predicted, measured in _steps():
        error = f"{100 * (predicted / measured - 1):+.1f} %"
        rows.append(f"| {name} | {predicted:.1f} | {measured:.1f} | {error} |")
    rows += [f"| {name} | {predicted:.1f} | {text} | |" for name, predicted, text in _whole_steps()]
    return "\n".join(rows) + "\n"


def _steps() -> list[tuple[str, float, float]]:
    """(what, predicted ms, measured ms)."""
    full, no_audio, card = DiTConfig(), DiTConfig(audio_inject_layers=()), gpu("h100")
    at = Geometry.of(full, VAEConfig(), height=704, width=384, infer_frames=48)

    def bare(config: DiTConfig, lanes: int, streamed_bytes: float = 0.0) -> float:
        tick = costs.arithmetic_seconds(config, at, card, precision="fp8", num_lanes=lanes)
        return 1e3 * max(tick, costs.copy_seconds(card, to_gpu_bytes=streamed_bytes))

    bf16 = 1e3 * costs.arithmetic_seconds(full, at, card, precision="bf16", num_lanes=1)
    weights, ring = 11.95e9, 5.19e9
    decoding = costs.decode_seconds(VAEConfig(), at, replace(card, kernels="plain"))
    return [
        ("a step, matrix products and attention, bf16", bf16, 191.9),
        ("the same in fp8", bare(full, 1), 141.1),
        ("streaming prototype, sequential, resident", bare(no_audio, 1), 133.0),
        ("sequential, weights streamed", bare(no_audio, 1, weights), 221.6),
        ("sequential, fp8 ring streamed", bare(no_audio, 1, ring), 136.0),
        ("wavefront of 4, resident", bare(no_audio, 4), 542.7),
        ("wavefront of 4, weights streamed", bare(no_audio, 4, weights), 539.3),
        ("wavefront of 4, fp8 rings streamed", bare(no_audio, 4, 4 * ring), 540.8),
        ("wavefront of 4, both streamed", bare(no_audio, 4, weights + 4 * ring), 616.8),
        ("decoding a block, plain kernels", 1e3 * decoding, 241.7),
    ]


def _whole_steps() -> list[tuple[str, float, str]]:
    config, card = DiTConfig(), gpu("h100")
    at = Geometry.of(config, VAEConfig(), height=704, width=384, infer_frames=48)
    fp8, bf16 = (
        1e3 * costs.tick_seconds(config, at, card, precision=p, kv_precision="bf16", num_lanes=1)
        for p in ("fp8", "bf16")
    )
    return [
        ("a whole step of Lipcast, fp8", fp8, "141.1 bare; public 238.5"),
        ("a whole step of Lipcast, bf16", bf16, "191.9 bare; public 276.5"),
    ]


def _fsdp() -> str:
    told = explain_fsdp(height=704, width=384, infer_frames=48)
    rows = ["\n| per GPU, 704x384, 48 frames | GiB |", "| --- | --- |"]
    rows += [f"| {part.name} | {part.num_bytes / GIB:.2f} |" for part in told.resident]
    rows.append(f"| **resident** | **{told.resident_bytes / GIB:.2f}** |")
    rows.append(f"| {told.unshard.name} | {told.unshard.num_bytes / GIB:.2f} |")
    rows.append(f"| **peak** | **{told.peak_bytes / GIB:.2f}** |")
    rows += ["", "| published | GiB | computed | error |", "| --- | --- | --- | --- |"]
    for claim in published_figures():
        if claim.computed_gib is None or claim.error is None:
            rows.append(f"| {claim.what} | {claim.published_gib} | not reproduced | |")
            continue
        error = f"{100 * claim.error:+.1f} %"
        rows.append(
            f"| {claim.what} | {claim.published_gib} | {claim.computed_gib:.2f} | {error} |"
        )
    tail = FSDP_TAIL.format(
        shard=told.resident[0].num_bytes / GIB,
        rival=rival_resident_bytes() / GIB,
        short=explain_fsdp(height=704, width=384, infer_frames=32).peak_bytes / GIB,
        ours=told.lipcast_unshard.num_bytes / GIB,
    )
    return FSDP_HEAD.format(usable=USABLE_GIB) + "\n".join(rows) + "\n" + tail


def _several() -> str:
    return _block(FOUR_CARDS, run(FOUR_CARDS))


if __name__ == "__main__":
    TARGET.write_text(document(), "utf-8")
