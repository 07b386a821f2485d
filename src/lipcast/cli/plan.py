"""`lipcast plan`: what would go where, how fast it would be, and what else could be done.

Input: the given flags. Output: tables, or one JSON document. Pure arithmetic on configurations: no
GPU, no weights and no torch are needed, and the hardware need not be this machine's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.model_configs import PUBLISHED, read_configs
from lipcast.cli.options import either_spelling, with_flags
from lipcast.cli.plan_view import layouts_text, plan_text
from lipcast.cli.validate import RawFlags, Value, parse
from lipcast.config.generate_options import SCHEDULES, GenerateOptions
from lipcast.config.video_spec import video_spec
from lipcast.errors import UsageError
from lipcast.planning.fallbacks import alternatives, default_fallbacks, ladder, parse_fallbacks
from lipcast.planning.hardware import Hardware, gpu, gpu_described, parse_bytes
from lipcast.planning.layouts import LayoutConstraints, LayoutPlan, plan_layouts, with_enough_steps
from lipcast.planning.plan import Budget, Models, Plan, PlanConstraints, PlanRequest
from lipcast.planning.planner import make_plan
from lipcast.planning.sizes import KV_PRECISIONS, PRECISIONS
from lipcast.planning.table import (
    alternative_document,
    fallback_document,
    layout_document,
    plan_document,
)

_PORTRAIT = (1280, 720)
"""Height and width of the picture that is supposed: only its aspect matters."""
_SUPPOSED_RAM = "64GB"
_SHARED = frozenset({"size", "infer_frames", "sample_steps", "fold_last_step", "json", "debug"})


def _flag(name: str, kind: Kind, text: str, default: str = "", *also: str) -> Flag:
    return Flag(name, Group.MACHINE, kind, text, default=default, also=also)


PLAN_FLAGS: tuple[Flag, ...] = (
    *(flag for flag in FLAGS if flag.name in _SHARED),
    _flag("model", Kind.TEXT, "14b, tiny, or the folder of a checkpoint.", PUBLISHED, "--ckpt_dir"),
    _flag("gpu", Kind.TEXT, "A card: rtx4090, rtx3060, h100 …", "the one in this machine"),
    _flag("vram", Kind.TEXT, 'GPU memory to use: "12GB" or "11.5GiB".', "the card's"),
    _flag("ram", Kind.TEXT, "Host memory to use.", f"what is free; with --gpu, {_SUPPOSED_RAM}"),
    _flag("gpus", Kind.WHOLE_VIDEO, "Plan for several of them.", "1"),
    _flag("precision", Kind.TEXT, f"Of the weights: {', '.join(PRECISIONS)}.", "the fastest"),
    _flag(
        "kv_precision", Kind.TEXT, f"Of the rings: {', '.join(KV_PRECISIONS)}.", "bf16 if it fits"
    ),
    _flag("schedule", Kind.TEXT, f"{' or '.join(SCHEDULES)}.", "the fastest"),
    _flag("offload_model", Kind.TRUTH, "True: stream all weights from host memory."),
    _flag("offload_kv_cache", Kind.SWITCH, "Stream all rings from host memory."),
    _flag("enable_online_decode", Kind.SWITCH, "Accepted: decoding is always online."),
    _flag(
        "num_gpus_dit", Kind.WHOLE_VIDEO, "GPUs for the transformer; with --gpus.", "the fastest"
    ),
    _flag(
        "ulysses_size", Kind.WHOLE_VIDEO, "GPUs that split one step; with --gpus.", "the fastest"
    ),
    _flag("enable_vae_parallel", Kind.SWITCH, "A GPU for the decoder alone; with --gpus."),
    _flag("dit_fsdp", Kind.SWITCH, "Shard the weights; with --gpus."),
    _flag("fallback", Kind.TEXT, 'The ladder: "kv_streamed, infer_frames=32, size=384*256".'),
    _flag("allow_degrade", Kind.SWITCH, "The ladder may change the picture."),
)


def plan(given: Mapping[str, RawFlags]) -> None:
    """Show what goes where, and how fast it will be, on any GPU.

    Nothing is loaded and no GPU is needed.

        lipcast plan --gpu rtx4090 --ram 32GB
        lipcast plan --vram 12GB --gpu h100 --size "384*256" --infer_frames 32
        lipcast plan --gpu rtx4090 --gpus 4 --ram 128GB
    """
    talk = Console.begin(given)
    values = {flag.name: parse(flag, given[flag.name]) for flag in PLAN_FLAGS if flag.name in given}
    request = plan_request(values)
    if int(values.get("gpus", 1)) > 1:
        num_gpus, constraints = int(values["gpus"]), _layout_constraints(values)
        request = with_enough_steps(request, num_gpus, constraints)
        found = plan_layouts(request, num_gpus, constraints)
        _show_layouts(talk, request, found)
    else:
        _refuse_layout_flags(values)
        _show_plan(talk, make_plan(request), values)


def register(app: typer.Typer) -> None:
    """Add the verb to an application."""
    context = {"help_option_names": ["-h", "--help"], "token_normalize_func": either_spelling}
    app.command("plan", context_settings=context)(with_flags(PLAN_FLAGS)(plan))


def _show_plan(talk: Console, chosen: Plan, values: Mapping[str, Value]) -> None:
    request = chosen.request
    order = str(values["fallback"]) if "fallback" in values else None
    degrade = bool(values.get("allow_degrade"))
    fallbacks = (
        parse_fallbacks(order) if order else default_fallbacks(request, allow_degrade=degrade)
    )
    others, below = alternatives(chosen), ladder(chosen, fallbacks)
    if talk.as_json:
        document: dict[str, Any] = {"plan": plan_document(chosen)}
        document["alternatives"] = [alternative_document(other) for other in others]
        document["ladder"] = [fallback_document(fallback) for fallback in below]
        print_json(document)
    else:
        sys.stdout.write(plan_text(chosen, others, below))


def _show_layouts(talk: Console, request: PlanRequest, found: tuple[LayoutPlan, ...]) -> None:
    if talk.as_json:
        print_json({"layouts": [layout_document(layout) for layout in found]})
    else:
        sys.stdout.write(layouts_text(request, found))


# From flags to the request


def plan_request(values: Mapping[str, Value]) -> PlanRequest:
    """The question that the flags ask. Raises UsageError for what makes no sense."""
    configs = read_configs(str(values.get("model", PUBLISHED)))
    names = ("size", "infer_frames", "sample_steps", "fold_last_step", "schedule")
    given: dict[str, Any] = {name: values[name] for name in names if name in values}
    options = GenerateOptions(**given)
    height, width = _PORTRAIT
    spec = video_spec(options, configs.dit, configs.vae, height=height, width=width)
    hardware = _hardware(values)
    return PlanRequest(
        geometry=spec.geometry,
        hardware=hardware,
        budget=_budget(values, hardware),
        models=Models(configs.dit, configs.vae, configs.text, configs.speech),
        constraints=_constraints(values, given),
        sample_steps=options.sample_steps or configs.dit.sample_steps,
        fold_last_step=options.fold_last_step,
    )


def _constraints(values: Mapping[str, Value], given: Mapping[str, Any]) -> PlanConstraints:
    streams_kv = True if values.get("offload_kv_cache") else None
    return PlanConstraints(
        precision=_one_of(values, "precision", PRECISIONS),
        ring_precision=_one_of(values, "kv_precision", KV_PRECISIONS),
        schedule=given.get("schedule"),
        max_resident_layers=0 if values.get("offload_model") else None,
        max_resident_ring_layers=0 if streams_kv else None,
        stream_sink=streams_kv,
    )


def _one_of(values: Mapping[str, Value], name: str, choices: tuple[str, ...]) -> Any:
    value = values.get(name)
    if value is not None and value not in choices:
        raise UsageError(f"--{name}: expected one of {', '.join(choices)}, got {value}")
    return value


def _layout_constraints(values: Mapping[str, Value]) -> LayoutConstraints:
    def count(name: str) -> int | None:
        return int(values[name]) if name in values else None

    return LayoutConstraints(
        num_gpus_dit=count("num_gpus_dit"),
        ulysses_size=count("ulysses_size"),
        vae_rank=True if values.get("enable_vae_parallel") else None,
        sharded=True if values.get("dit_fsdp") else None,
    )


def _refuse_layout_flags(values: Mapping[str, Value]) -> None:
    """What only several GPUs can do is not ignored on one."""
    if int(values.get("gpus", 1)) < 1:
        raise UsageError(f"--gpus: expected at least 1, got {values['gpus']}")
    for name in ("num_gpus_dit", "ulysses_size", "enable_vae_parallel", "dit_fsdp"):
        if values.get(name) not in {None, False, 1}:
            raise UsageError(f"--{name}: expected --gpus with the number of GPUs beside it")


def _budget(values: Mapping[str, Value], hardware: Hardware) -> Budget:
    vram = parse_bytes(str(values["vram"])) if "vram" in values else hardware.memory_bytes
    if "ram" in values:
        ram = parse_bytes(str(values["ram"]))
    elif "gpu" in values:
        ram = parse_bytes(_SUPPOSED_RAM)
    else:
        ram = _free_ram_bytes()
    return Budget(vram, ram)


def this_device_context() -> tuple[Hardware, Budget]:
    """The first card and all memory that is here; raises UsageError where there is no known card."""
    hardware = _hardware({})
    return hardware, _budget({}, hardware)


def _free_ram_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _hardware(values: Mapping[str, Value]) -> Hardware:
    """The card that is named, or the first one in this machine."""
    if "gpu" in values:
        return gpu(str(values["gpu"]))
    found = _driver_says()
    if not found:
        raise UsageError("no GPU found in this machine; name one with --gpu, such as --gpu rtx4090")
    return read_driver(found)


def _driver_says() -> str:
    """The first line of what the driver lists; empty where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def read_driver(listing: str) -> Hardware:
    """The card of "NVIDIA GeForce RTX 4090, 24564", one line per card; memory in MiB."""
    name, _, memory = listing.splitlines()[0].rpartition(",")
    if not memory.strip().isdigit():
        raise UsageError(f'expected the driver to list "name, MiB", got "{listing}"; use --gpu')
    described = gpu_described(name.strip(), int(memory) * 2**20)
    return replace(described, label=name.strip())
