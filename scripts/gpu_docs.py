"""Write docs/many-gpus.md: its tables and timelines are computed by the planner.

Run from the root of the project: .venv/bin/python scripts/gpu_docs.py
"""

from __future__ import annotations

import contextlib
import io
import shlex
from pathlib import Path

from lipcast.cli.plan import plan, plan_request
from lipcast.config.units import GIB
from lipcast.planning.layouts import plan_layouts

TARGET = Path(__file__).parents[1] / "docs" / "many-gpus.md"
COUNTS = (1, 2, 3, 4, 5, 8)
CARDS = (("rtx4090", "256GB"), ("h100", "512GB"))
IN_FULL = ("--gpu h100 --gpus 3 --ram 512GB", "--gpu rtx4090 --gpus 8 --ram 256GB")
PUBLISHED = (
    "--gpu rtx4090 --gpus 4 --ram 128GB --num_gpus_dit 3 --enable_vae_parallel --dit_fsdp "
    '--size "688*368" --infer_frames 32 --sample_steps 3 --enable_online_decode'
)

HEAD = """\
# Several GPUs

One command uses any number of GPUs: it plans the fastest layout, and starts, watches and ends the processes.
This needs Linux (or macOS, for processes of a CPU); on Windows, use WSL 2:

```bash
lipcast generate --image me.png --audio hello.wav --ckpt_dir ckpt/Wan2.2-S2V-14B --gpus 4
```

```text
torchrun --nproc_per_node 4 --no-python lipcast generate --image me.png --audio hello.wav --ckpt_dir ...
```

Under torchrun the command uses the processes that torchrun has started, on several machines too; a long video
is made in one piece there, not in [segments](long-videos.md). To try it without a GPU, run the embedded model
in several processes of a CPU:

```bash
lipcast generate --image examples/portrait_0.png --audio examples/speech_b_male.wav -o two.mp4 \\
  --device cpu --gpus 2 --num_clip 1
```

In Python, `lipcast.load(..., gpus=4)` with the fields of `lipcast.config.gpu_options.GpuOptions`; `close`
the model, or use it in a `with` statement, to end its processes. It makes one video at a time.

## How the work is shared

| | what is split | what crosses | flag |
| --- | --- | --- | --- |
| stages | denoising steps: a stage owns consecutive ones, with their rings and a sink of its own | the \
latents of a block, through host memory, while both stages compute | `--num_gpus_dit`, over `--ulysses_size` |
| Ulysses | tokens and attention heads of one step; a rank keeps the rings of its heads only | tokens for \
heads and back, around every self-attention | `--ulysses_size` |
| sharded weights | every layer over all ranks of the transformer (FSDP2), in host memory with \
`--offload_model True` | a layer is gathered before it is used, the next one meanwhile | `--dit_fsdp` |
| decoder | the last stage decodes beside its steps, or a rank does nothing else | latents | \
`--enable_vae_parallel` |

All of them give the video of one GPU: bit for bit where shapes stay the same (stages, sharding, a decoder
of its own), and within 1e-5 of the largest latent where sums have another order (Ulysses). Neither tokens nor
heads need divide by the degree of Ulysses: a rank has one more than another (40 heads on three GPUs: 14, 13
and 13), and nothing is padded; a degree above the number of heads is refused. The planner itself shares heads
unevenly only where nothing else uses the GPUs that were asked for. A stage that owns several steps does them
one after the other, or with `--schedule wavefront` all in one pass. More GPUs than steps go to Ulysses or
stay idle; a combination that cannot be is refused with those near it. Three sampling steps make two
evaluations when the last is folded: three stages switch folding off.

The reference is replaced without stopping the stages: each fills its own sink when it comes to that block.
With sharded weights all stages work in step, since each needs the others' shards; there they wait once.

At the end the command names the bottleneck; `--json` has, for every rank, the seconds of computing,
decoding, waiting and sending. When a rank fails or is killed, all are ended within seconds, the error names
that rank and its reason, and the frames that are written stay playable. No process outlives the command,
however it ends. Where only latents cross (stages, decoder), a rank that runs out of memory gives up the video
with a MemoryBudgetError and the model is ready for another one; with Ulysses or sharded weights it has to be
loaded again.

Weights and rings that do not fit a rank stream from host memory, as on one GPU ([small GPUs](low-memory.md));
lossless fallbacks are taken rank by rank, except where ranks exchange within a pass (Ulysses, sharding).
Quantised weights are not sharded: FSDP gathers bf16 or fp32.

The speech encoder runs in the main process: on the GPU that decodes, where it and a second process fit, else
on the CPU. There the published encoder took 2.2 s a block with two cores, so real time needs many more.

## Layouts for 1 to 8 GPUs

Predictions of `lipcast plan`, for the published 14B model at its default size; none of them was measured.
[Planning](plan.md) says what they rest on.
"""

TIMELINES = """
## Who does what when
"""

STUDY = """
## The published case: four cards with 24 GB

`--num_gpus_dit 3 --enable_vae_parallel --dit_fsdp` with 32 frames, 3 steps, 688*368 and online decode.
The public implementation gathers everything outside its blocks as one unit of 4.17 GiB and needs 21.2 of
the 22.15 GB; here two layers are whole at a time:
"""

MEASURE = """
## Measuring

```text
.venv/bin/python benchmarks/layouts.py
```

measures one process by part, predicts the layouts of two and three processes from that, runs them, and says
whether the prediction ranks them right. {measured}"""
MEASURED = """\
On two cores of a Xeon (Sapphire Rapids), the
embedded model, ratios of one run:

| | s per block | times as fast | predicted |
| --- | --- | --- | --- |
| one process, one thread | 1.091 | 1 | |
| one process, two threads | 0.694 | 1.57 | |
| 2 stages, last stage decodes | 0.605 | 1.81 | 1.55 |
| 1 stage, VAE rank | 0.844 | 1.29 | 1.43 |
| 1 stage, Ulysses 2 | 0.871 | 1.25 | 1.31 |

The predicted order is the measured one. Two stages make more of two cores than two threads do: 1.15 times.
"""


def document() -> str:
    """The whole page."""
    parts = [HEAD, *(_table(*card) for card in CARDS), TIMELINES, *map(_example, IN_FULL)]
    return "".join((*parts, STUDY, _example(PUBLISHED), MEASURE.format(measured=MEASURED)))


def _table(card: str, ram: str) -> str:
    rows = [f"\n### {card}, {ram} of host memory\n"]
    rows.append("| GPUs | layout | GPU, GiB | s per block | frames/s | first pictures, s |")
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for count in COUNTS:
        request = plan_request({"gpu": card, "ram": ram})
        plan = plan_layouts(request, count)[0]
        idle = count - plan.layout.num_gpus
        rows.append(
            f"| {count} | {plan.layout}{f', {idle} idle' if idle else ''} | "
            f"{plan.vram_bytes / GIB:.1f} | {plan.block_s:.2f} | {plan.frames_per_s:.1f} | "
            f"{plan.first_block_s:.1f} |"
        )
    return "\n".join(rows) + "\n"


def _example(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        plan.main(shlex.split(command), standalone_mode=False)
    return f"\n```text\n$ lipcast plan {command}\n{out.getvalue().rstrip()}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(document(), "utf-8")
