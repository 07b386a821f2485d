"""The options of `lipcast generate`, which other commands share: names, types, defaults in words.

An option that is not given is absent from a command's values; its default lives in the dataclass that it
belongs to (`GenerateOptions`, `MemoryOptions`, `GpuOptions`). Dashes and underscores are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import click

from lipcast.cli.characters import CHARACTER
from lipcast.cli.command import Option, Section, switch, toggle, value_options
from lipcast.cli.compat_flags import COMPAT_FLAGS
from lipcast.cli.types import FILE, FOLDER, OUTPUT, SECONDS, TEXT
from lipcast.config.direction import POSE_ENDS
from lipcast.config.generate_options import CROPS, REFERENCE_ENCODINGS, SCHEDULES
from lipcast.config.gpu_options import ATTENTION_CHOICES, GRAPH_CHOICES, KERNEL_CHOICES
from lipcast.config.precision import KV_PRECISIONS, PRECISIONS

_Options = TypeVar("_Options")

MODEL = Option(
    "model",
    "Model: `tiny` (included), the name of a pulled model, or the folder of a published or converted "
    "checkpoint.",
    section=Section.FILES, also=("--ckpt_dir",), metavar="NAME", show_default="tiny",
)  # fmt: skip
LORA = Option(
    "lora",
    "LoRA adapter as PATH or PATH:WEIGHT, merged while the weights are read. May be given several times. "
    "The published adapter is merged when it lies beside the weights.",
    section=Section.FILES, also=("--lora_path", "--lora_path_dmd"), metavar="PATH[:WEIGHT]",
    multiple=True,
)  # fmt: skip
CONSOLE = (
    switch(
        "json", "Print one JSON document on standard output, and nothing else there.",
        section=Section.CONSOLE,
    ),
    switch("quiet", "Print errors only.", section=Section.CONSOLE, also=("-q",)),
    switch("verbose", "Print what is being done.", section=Section.CONSOLE, also=("-v",)),
    switch("debug", "Print the traceback of an error.", section=Section.CONSOLE),
)  # fmt: skip
JSON_DEBUG = value_options(CONSOLE, "json", "debug")
JSON_QUIET_DEBUG = value_options(CONSOLE, "json", "quiet", "debug")

SIGN = Option(
    "sign",
    "Sign the video with Content Credentials (C2PA): certificate chain and key, both PEM (lipcast[c2pa]).",
    section=Section.FILES, nargs=2, type=FILE, metavar="CERT KEY", show_default="not signed",
)  # fmt: skip

MAIN = (
    Option("image", "Portrait: any picture that Pillow reads.", type=FILE),
    Option("audio", "Voice: any audio, or video with sound, that FFmpeg reads.", type=FILE),
    Option(
        "text", "Words to speak, in place of --audio; see --tts.",
        type=TEXT, metavar="TEXT",
    ),
    Option(
        "prompt", "Text that describes the picture and how the person behaves.",
        type=TEXT, metavar="TEXT",
    ),
    Option(
        "output",
        "Video file to write: .mp4, .mov or .mkv. An existing file is replaced. In an existing folder, the "
        "file is named as with --save_dir.",
        also=("-o", "--save_file"), type=OUTPUT, show_default="out.mp4",
    ),
    Option(
        "size", 'Size of the video as an area, such as "704*384". The portrait decides the aspect.',
        metavar="H*W", show_default="the model's",
    ),
    Option(
        "vram",
        'GPU memory to use, such as "12GB" or "11.5GiB". What does not fit is streamed from host memory.',
        metavar="BYTES", show_default="what is free",
    ),
)  # fmt: skip


def tts_option(*others: str) -> Option:
    """Return the option that names the speech synthesis; `others` may be chosen beside the engines."""
    engines = ", ".join(
        ("hibari (English, lipcast[tts])", "espeak (the program espeak-ng)", *others)
    )
    return Option(
        "tts",
        f"Speech synthesis: {engines}, or the URL of a server with OpenAI's /v1/audio/speech, whose key "
        "is in LIPCAST_TTS_KEY.",
        section=Section.SPEECH, metavar="|".join(("auto", "hibari", "espeak", *others, "URL")),
        show_default="auto: the first found",
    )  # fmt: skip


SPEECH = (
    tts_option(),
    Option(
        "tts_voice", "Voice of the speech synthesis, as it calls it.",
        section=Section.SPEECH, metavar="NAME", show_default="heart, en or alloy",
    ),
    Option(
        "tts_model", "Model of the server that speaks.",
        section=Section.SPEECH, metavar="NAME", show_default="tts-1",
    ),
)  # fmt: skip

DIRECTING = (
    CHARACTER,
    Option(
        "prompts",
        "Table of prompts over time, with the columns second and prompt: CSV or JSON. Each begins at the "
        "nearest border of a block (0.48 s) and holds until the next; --prompt holds before the first.",
        section=Section.DIRECTING, type=FILE,
    ),
    Option(
        "pose_video",
        "Video whose pose is followed from the beginning, or a folder of pictures in the order of their "
        "names, 25 a second.",
        section=Section.DIRECTING, type=FILE,
    ),
    Option(
        "pose_end",
        "What comes after the end of --pose_video: hold its last picture, loop it, or black pictures, as "
        "published.",
        section=Section.DIRECTING, type=click.Choice(POSE_ENDS), show_default="hold",
    ),
    Option(
        "continue_from",
        "Video from whose last frames this one goes on, of the same aspect; its sound is not used.",
        section=Section.DIRECTING, type=FILE,
    ),
)  # fmt: skip

FILES = (
    MODEL,
    Option(
        "prompt_embedding", "File made by `lipcast encode-prompt`; replaces --prompt and the text encoder.",
        section=Section.FILES, type=FILE,
    ),
    LORA,
    Option(
        "decoder", 'TAEHV "taew2_1" decoder file. Faster and smaller than the autoencoder, less exact.',
        section=Section.FILES, type=FILE, show_default="the model's autoencoder",
    ),
    Option(
        "save_dir", "Folder for a video named after the time, the steps and the prompt; replaces --output.",
        section=Section.FILES, type=FOLDER,
    ),
    SIGN,
    Option(
        "segment",
        "Length of the segments of a long video, such as 60s or 2min. After an interruption the same command "
        "continues with the next segment. 0: make the video in one piece.",
        section=Section.FILES, type=SECONDS, show_default="60s for audio over 10 min, and for jobs",
    ),
)  # fmt: skip

VIDEO = (
    Option(
        "infer_frames", "Video frames in the attention window, and in a clip: a multiple of 4, at least 12.",
        section=Section.VIDEO, type=int, metavar="N", show_default="the model's",
    ),
    Option(
        "num_clip", "Maximum number of clips. The audio bounds the length too.",
        section=Section.VIDEO, type=int, metavar="N", show_default="the whole audio",
    ),
    Option(
        "sample_steps", "Number of denoising steps, 1 to 8.",
        section=Section.VIDEO, type=int, metavar="N", show_default="the model's",
    ),
    Option(
        "base_seed",
        "The same seed, 0 to 2^64-1, gives the same video. A negative seed picks and reports a random one.",
        section=Section.VIDEO, also=("--seed",), type=int, metavar="N", show_default="420",
    ),
    toggle(
        "fold_last_step", "Skip the last denoising evaluation, which hardly changes the video.",
        section=Section.VIDEO, default="on",
    ),
    Option(
        "reference_encoding", "Encoding of the reference picture.",
        section=Section.VIDEO, type=click.Choice(REFERENCE_ENCODINGS), show_default="video",
    ),
    toggle(
        "swap_reference", "After the first clip, use the first generated frame instead of the portrait.",
        section=Section.VIDEO, default="on",
    ),
    Option(
        "cond_distance", "Fixed rotary distance of the reference.",
        section=Section.VIDEO, type=int, metavar="N", show_default="randomised from the seed",
    ),
    Option(
        "audio_scale",
        "How strongly the voice moves the picture, 0 to 3. 1.4 is livelier and as fast.",
        section=Section.VIDEO, type=float, metavar="X", show_default="1",
    ),
    Option(
        "start_frame", "Latent frame at which positions start.",
        section=Section.VIDEO, type=int, metavar="N", show_default="0",
    ),
    Option(
        "crop",
        "center: the whole picture. face: a square around its largest face, for wide photos (lipcast[lab]).",
        section=Section.VIDEO, type=click.Choice(CROPS), show_default="center",
    ),
    toggle(
        "clean_audio",
        "Hear the loudest channel where the channels cancel each other, and nothing where there is only "
        "noise. Off: the published arithmetic.",
        section=Section.VIDEO, default="on",
    ),
)  # fmt: skip

COMPUTE = (
    Option(
        "device", "Device to compute on: cpu, cuda or cuda:1.",
        section=Section.COMPUTE, metavar="DEVICE", show_default="a GPU if there is one",
    ),
    Option(
        "precision",
        "fp32 and bf16: precision of the computation. fp8, int8, int4 and nvfp4: quantise the weights while "
        "they are read.",
        section=Section.COMPUTE, type=click.Choice(PRECISIONS), show_default="what suits the device",
    ),
    switch("fp8", "Same as --precision fp8.", section=Section.COMPUTE),
    Option(
        "kernels",
        "Norms, gates, rotations and quantisation: triton fuses them, plain uses PyTorch's own operators. "
        "auto: triton on every GPU where it works; see `lipcast doctor`.",
        section=Section.COMPUTE, type=click.Choice(KERNEL_CHOICES), show_default="auto",
    ),
    Option(
        "attention",
        "Back end of self-attention: sdpa is PyTorch's own, triton the fused kernel; fa3, cudnn and xformers "
        "come with lipcast[fa3] and so on. See `lipcast doctor`.",
        section=Section.COMPUTE, type=click.Choice(ATTENTION_CHOICES), show_default="auto",
    ),
    Option(
        "cuda_graphs",
        "Launch a whole pass of the transformer at once. auto: where one GPU holds everything.",
        section=Section.COMPUTE, type=click.Choice(GRAPH_CHOICES), show_default="auto",
    ),
    Option(
        "schedule", "Blocks that are computed together. The video is the same.",
        section=Section.COMPUTE, type=click.Choice(SCHEDULES), show_default="the plan's, else sequential",
    ),
)  # fmt: skip

MEMORY = (
    Option(
        "ram", "Host memory to use, such as 32GB.",
        section=Section.MEMORY, metavar="BYTES", show_default="what is free",
    ),
    Option(
        "offload_model", "True: stream all weights from host memory. No effect on a CPU.",
        section=Section.MEMORY, type=bool, metavar="True|False",
    ),
    switch(
        "offload_kv_cache", "Stream the KV cache from host memory. No effect on a CPU.",
        section=Section.MEMORY,
    ),
    Option(
        "kv_precision", "Precision of the KV cache.",
        section=Section.MEMORY, type=click.Choice(KV_PRECISIONS), show_default="the plan's",
    ),
    Option(
        "fallback",
        'Fallbacks to take in this order when memory runs out: "kv_streamed, infer_frames=32, '
        'size=384*256". "none": stop instead.',
        section=Section.MEMORY, metavar="LIST", show_default="those that keep the picture",
    ),
    switch(
        "allow_degrade", "Allow fallbacks that change the picture.",
        section=Section.MEMORY,
    ),
)  # fmt: skip

GPUS = (
    Option(
        "gpus",
        "Number of GPUs; the planner picks the fastest layout. Under torchrun: its number of processes.",
        section=Section.GPUS, type=int, metavar="N", show_default="1, or what the options below need",
    ),
    Option(
        "num_gpus_dit", "GPUs that run the transformer: pipeline stages times --ulysses_size.",
        section=Section.GPUS, type=int, metavar="N", show_default="the plan's",
    ),
    Option(
        "ulysses_size", "GPUs that share the tokens and heads of one denoising step (Ulysses).",
        section=Section.GPUS, type=int, metavar="N", show_default="the plan's",
    ),
    switch(
        "enable_vae_parallel", "Give the decoder a GPU of its own.",
        section=Section.GPUS, show_default="the plan's",
    ),
    switch(
        "dit_fsdp",
        "Shard the transformer's weights over the GPUs (FSDP2); with --offload_model True the shards are in "
        "host memory.",
        section=Section.GPUS, show_default="the plan's",
    ),
)  # fmt: skip

OPTIONS: tuple[Option, ...] = (
    *MAIN, *DIRECTING, *SPEECH, *FILES, *VIDEO, *COMPUTE, *MEMORY, *GPUS, *CONSOLE,
    *(flag.option() for flag in COMPAT_FLAGS),
)  # fmt: skip


def options_named(*names: str) -> tuple[Option, ...]:
    """Return options of `generate` by name, for commands that share them."""
    return value_options(OPTIONS, *names)


def options_from(kind: type[_Options], values: Mapping[str, Any], **changes: Any) -> _Options:
    """Make an options dataclass of the values that carry the names of its fields."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**({name: value for name, value in values.items() if name in names} | changes))
