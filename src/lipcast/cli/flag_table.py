"""Every flag of `lipcast generate`, as data.

All flags of the public Live Avatar scripts are here, in their spelling (dashes work too). A flag
either sets something, or asks for what Lipcast does anyway and is accepted, or asks for what this
version cannot do and is refused with a sentence. None is ignored. The parser, the help and the
table in docs/generate.md are made from this module.
"""

from __future__ import annotations

from lipcast.cli.flag import CompatNoOp, Flag, Group, Kind, SetsOption, Unsupported
from lipcast.config.generate_options import ANCHOR_ENCODINGS, SCHEDULES
from lipcast.planning.sizes import KV_PRECISIONS

_ANCHORS, _SCHEDULES = " or ".join(ANCHOR_ENCODINGS), " or ".join(SCHEDULES)

_FILES = (
    Flag("image", Group.FILES, Kind.TEXT, "The portrait: any picture that Pillow reads."),
    Flag(
        "audio", Group.FILES, Kind.TEXT,
        "The voice: any sound (or video with sound) that FFmpeg reads.",
    ),
    Flag(
        "segment", Group.FILES, Kind.TEXT,
        "Make a long video in segments of this length (60s, 2min), so that the same command goes on "
        "after whatever ended it; 0: in one piece.",
        default="60s for sounds over 10 min, and for jobs",
    ),
    Flag("prompt", Group.FILES, Kind.TEXT, "What the picture shows and how the person behaves."),
    Flag(
        "prompt_embedding", Group.FILES, Kind.TEXT,
        "Instead of --prompt: a file of `lipcast encode-prompt`, which needs no text encoder here.",
    ),
    Flag(
        "output", Group.FILES, Kind.TEXT,
        "The video to write: .mp4, .mov or .mkv. An existing file is replaced.",
        default="out.mp4",
        also=("-o", "--save_file"),
    ),
    Flag(
        "save_dir", Group.FILES, Kind.TEXT,
        "Instead of --output: a folder for a file that is named after the time, the steps and the prompt.",
    ),
    Flag(
        "model", Group.FILES, Kind.TEXT,
        "The embedded model `tiny`, a model that was pulled, or the folder of a checkpoint, published "
        "or converted.",
        default="tiny",
        also=("--ckpt_dir",),
    ),
    Flag(
        "lora", Group.FILES, Kind.TEXTS,
        "An adapter, as path or path:weight, merged into the weights while they are read; may be "
        "given several times. The published one is merged where it lies beside the weights.",
        also=("--lora_path", "--lora_path_dmd"),
    ),
)  # fmt: skip

_VIDEO = (
    Flag(
        "size",
        Group.VIDEO,
        Kind.TEXT,
        'An area, written as two sides such as "704*384"; the picture decides the aspect.',
        default="the model's",
    ),
    Flag(
        "infer_frames",
        Group.VIDEO,
        Kind.WHOLE_VIDEO,
        "Frames that attention sees, which is the length of a clip: a multiple of 4 from 12 up.",
        default="the model's",
    ),
    Flag(
        "num_clip",
        Group.VIDEO,
        Kind.WHOLE_VIDEO,
        "At most this many clips; the sound bounds the length too.",
        default="the whole sound",
    ),
    Flag(
        "sample_steps",
        Group.VIDEO,
        Kind.WHOLE_VIDEO,
        "Denoising steps, 1 to 8.",
        default="the model's",
    ),
    Flag(
        "base_seed",
        Group.VIDEO,
        Kind.WHOLE_VIDEO,
        "One seed, one video; negative: a random seed, which is reported.",
        SetsOption("seed"),
        default="420",
        also=("--seed",),
    ),
    Flag(
        "fold_last_step",
        Group.VIDEO,
        Kind.TOGGLE,
        "Leave out the last denoising evaluation, which changes next to nothing.",
        default="on",
    ),
    Flag(
        "anchor",
        Group.VIDEO,
        Kind.TEXT,
        f"How the reference is encoded: {_ANCHORS}.",
        default="video",
    ),
    Flag(
        "swap_anchor",
        Group.VIDEO,
        Kind.TOGGLE,
        "After the first clip, refer to the first generated frame in place of the portrait.",
        default="on",
    ),
    Flag(
        "cond_distance",
        Group.VIDEO,
        Kind.WHOLE_VIDEO,
        "A fixed rotary distance of the reference.",
        default="drawn from the seed",
    ),
    Flag(
        "start_frame",
        Group.VIDEO,
        Kind.WHOLE_VIDEO,
        "The latent frame that positions start at.",
        default="0",
    ),
)

_MACHINE = (
    Flag(
        "schedule",
        Group.MACHINE,
        Kind.TEXT,
        f"Which blocks are computed together: {_SCHEDULES}. The video is the same.",
        default="the plan's, else sequential",
    ),
    Flag(
        "device", Group.MACHINE, Kind.TEXT, "cpu, cuda or cuda:1.", default="a GPU if there is one"
    ),
    Flag(
        "precision",
        Group.MACHINE,
        Kind.TEXT,
        "fp32 or bf16 to compute in; fp8, int8 or int4 for weights that are quantised while they "
        "are read.",
        default="what suits the device",
    ),
    Flag(
        "decoder",
        Group.MACHINE,
        Kind.TEXT,
        'A file of a TAEHV "taew2_1" decoder, in place of the autoencoder\'s: faster, smaller, less '
        "exact.",
        default="the autoencoder's",
    ),
    Flag(
        "fp8",
        Group.MACHINE,
        Kind.SWITCH,
        "The same as --precision fp8.",
        SetsOption("precision", "fp8"),
    ),
)

_MEMORY = (
    Flag(
        "vram",
        Group.MEMORY,
        Kind.TEXT,
        'Memory of the device to use: "12GB" or "11.5GiB". What does not fit streams from the host.',
        default="what is free",
    ),
    Flag("ram", Group.MEMORY, Kind.TEXT, "Host memory to use for that.", default="what is free"),
    Flag(
        "offload_model",
        Group.MEMORY,
        Kind.TRUTH,
        "True: stream all weights from host memory, where a CPU has them anyway.",
    ),
    Flag(
        "offload_kv_cache",
        Group.MEMORY,
        Kind.SWITCH,
        "Stream what attention remembers from host memory, where a CPU has it anyway.",
    ),
    Flag(
        "kv_precision",
        Group.MEMORY,
        Kind.TEXT,
        f"Of what attention remembers: {', '.join(KV_PRECISIONS)}.",
        default="the plan's",
    ),
    Flag(
        "fallback",
        Group.MEMORY,
        Kind.TEXT,
        'What gives way when memory runs out, in order: "kv_streamed, infer_frames=32, '
        'size=384*256"; "none": nothing does.',
        default="what keeps the picture",
    ),
    Flag(
        "allow_degrade",
        Group.MEMORY,
        Kind.SWITCH,
        "When memory runs out, what changes the picture may give way too.",
    ),
)

_GPUS = (
    Flag(
        "gpus",
        Group.GPUS,
        Kind.WHOLE_VIDEO,
        "How many make the video together; the fastest layout for them is planned. Under torchrun: its "
        "processes.",
        default="1, or what the flags below need",
    ),
    Flag(
        "num_gpus_dit",
        Group.GPUS,
        Kind.WHOLE_VIDEO,
        "How many of them run the transformer: stages of consecutive steps, times --ulysses_size.",
        default="the plan's",
    ),
    Flag(
        "ulysses_size",
        Group.GPUS,
        Kind.WHOLE_VIDEO,
        "How many split the tokens and heads of one step.",
        default="the plan's",
    ),
    Flag("enable_vae_parallel", Group.GPUS, Kind.SWITCH, "One only decodes.", default="the plan's"),
    Flag(
        "dit_fsdp",
        Group.GPUS,
        Kind.SWITCH,
        "Each keeps a part of the weights (FSDP2), in host memory with --offload_model True; layers are "
        "gathered when they are needed.",
        default="the plan's",
    ),
)

_TALK = (
    Flag(
        "json",
        Group.TALK,
        Kind.SWITCH,
        "Print one JSON document of what was done, and nothing else, on stdout.",
    ),
    Flag("quiet", Group.TALK, Kind.SWITCH, "No progress and no notes, errors only.", also=("-q",)),
    Flag("verbose", Group.TALK, Kind.SWITCH, "Say what is being done.", also=("-v",)),
    Flag("debug", Group.TALK, Kind.SWITCH, "Show the traceback of an error."),
)


def _anyway(
    name: str, kind: Kind, values: tuple[object, ...] | None, because: str, otherwise: str = ""
) -> Flag:
    text = f"{because[0].upper()}{because[1:]}."
    shown = (
        "" if values is None or kind is Kind.SWITCH else " or ".join(f"{value}" for value in values)
    )
    text = f"{shown}: {because}." if shown else text
    return Flag(name, Group.PUBLIC, kind, text, CompatNoOp(values, because, otherwise))


_PUBLIC = (
    _anyway(
        "task",
        Kind.TEXT,
        ("s2v-14B",),
        "speech to video is the one task",
        "expected s2v-14B; Lipcast makes video from speech only",
    ),
    _anyway(
        "sample_solver",
        Kind.TEXT,
        ("euler",),
        "Euler is the one solver",
        "expected euler, the solver that the model is distilled for",
    ),
    _anyway(
        "sample_guide_scale",
        Kind.NUMBER,
        (0, 1),
        "the model is distilled to need no guidance",
        "expected 0; the model is distilled without classifier-free guidance",
    ),
    _anyway(
        "sample_shift",
        Kind.NUMBER,
        (3,),
        "the timesteps of the distilled model have shift 3",
        "expected 3, the shift that the model is distilled for",
    ),
    _anyway(
        "enable_online_decode",
        Kind.SWITCH,
        (True,),
        "every block is decoded as soon as it is clean",
    ),
    _anyway(
        "convert_model_dtype", Kind.SWITCH, (True,), "weights have the precision of the computation"
    ),
    _anyway(
        "using_merged_ckpt",
        Kind.SWITCH,
        (True,),
        "an adapter is merged only if it is named or lies beside the weights",
    ),
    _anyway(
        "load_lora",
        Kind.SWITCH,
        (True,),
        "an adapter that is named or lies beside the weights is merged",
    ),
    _anyway(
        "training_config",
        Kind.TEXT,
        None,
        "rank and alpha of an adapter are read from its file",
    ),
    _anyway(
        "single_gpu", Kind.SWITCH, (True,), "one GPU makes the video unless several are asked for"
    ),
    _anyway("t5_fsdp", Kind.SWITCH, (True,), "the text encoder runs on the CPU, in host memory"),
    _anyway("t5_cpu", Kind.SWITCH, (True,), "the text encoder runs on the CPU"),
)

_SWITCHES, _VALUES = Kind.SWITCH, Kind.TEXT
_NOT_BUILT: tuple[tuple[str, Kind, tuple[str, ...]], ...] = (
    ("the sound decides the length; bound it with --num_clip", _VALUES, ("frame_num",)),
    ("driving by a pose video is not in this version; leave it out", _VALUES, ("pose_video",)),
    (
        "keeping the portrait as the first frame is not in this version; leave it out",
        _SWITCHES,
        ("start_from_ref",),
    ),
    (
        "leaving out the motion tokens is not in this version; leave it out",
        _SWITCHES,
        ("drop_motion_noisy",),
    ),
    (
        "the prompt is used as it is written; write it in full and leave this out",
        _SWITCHES,
        ("use_prompt_extend",),
    ),
    (
        "the prompt is used as it is written; write it in full and leave this out",
        _VALUES,
        ("prompt_extend_method", "prompt_extend_model", "prompt_extend_target_lang"),
    ),
    (
        "speech synthesis is not in this version; give the spoken text as --audio",
        _SWITCHES,
        ("enable_tts",),
    ),
    (
        "speech synthesis is not in this version; give the spoken text as --audio",
        _VALUES,
        ("tts_prompt_audio", "tts_prompt_text", "tts_text"),
    ),
    ("lists of inputs are not read; give one --image and one --audio", _SWITCHES, ("use_dataset",)),
    (
        "lists of inputs are not read; give one --image and one --audio",
        _VALUES,
        ("dataset_sample_idx", "sample_list"),
    ),
    (
        "this version has no server; make one video with each call",
        _VALUES,
        ("server_port", "server_name"),
    ),
)

_REFUSED = tuple(
    Flag(name, Group.REFUSED, kind, f"{sentence[0].upper()}{sentence[1:]}.", Unsupported(sentence))
    for sentence, kind, names in _NOT_BUILT
    for name in names
)

FLAGS: tuple[Flag, ...] = (
    *_FILES,
    *_VIDEO,
    *_MACHINE,
    *_MEMORY,
    *_GPUS,
    *_TALK,
    *_PUBLIC,
    *_REFUSED,
)
