"""Find what each tensor of an adapter file does, and to which tensor of the base.

Input: the names in a file and the `NameTable` of the base. Output: a `Placed` for each name that has
a place there, and the names that have none. Names of every trainer of this family are known; an
adapter that is no LoRA is called by its kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lipcast.env import logger
from lipcast.errors import CheckpointError
from lipcast.weights.lora_scaling import not_lora
from lipcast.weights.names import NameTable
from lipcast.weights.source import summarise_names

Role = Literal["A", "B", "alpha", "add", "add scaled", "set"]

_FACTOR = re.compile(
    r"(?P<layer>.+?)[._]lora(_linear_layer)?[._](?P<side>A|B|a|b|down|up)"
    r"(\.(?!weight$|bias$)[^.]+)?(\.(?P<leaf>weight|bias))?"
)
"""A factor of any trainer; between side and leaf peft puts the adapter's name."""
_SIDES: Mapping[str, Role] = {"a": "A", "down": "A", "b": "B", "up": "B"}
_LEAVES: Mapping[str, tuple[str, Role]] = {
    "alpha": ("weight", "alpha"),
    "diff": ("weight", "add"), "diff_b": ("bias", "add"), "diff_m": ("modulation", "add"),
    "w_norm": ("weight", "add"), "b_norm": ("bias", "add"),
    "set_weight": ("weight", "set"), "set_bias": ("bias", "set"),
}  # fmt: skip
"""Tensor of the layer and role by the last word of a name."""
_METHODS = (
    ("DoRA", r"[._](dora_scale|lora_magnitude_vector)\b"),
    ("LoKr", r"[._]lokr_"),
    ("LoHa", r"[._]hada_"),
    ("OFT", r"[._]oft_"),
    ("BOFT", r"[._]boft_"),
    ("GLoRA", r"\.[ab][12]\.weight$"),
    ("VeRA", r"[._]vera_lambda_"),
    ("(IA)³", r"[._](ia3_l|on_input)\b"),
    ("HRA", r"[._]hra_u\b"),
    ("LoCon with a Tucker core (lora_mid)", r"[._]lora_mid\b"),
    ("LoRA that reshapes layers (reshape_weight)", r"\.reshape_weight$"),
)
_SCHEMES = (
    ("kohya and musubi (lora_unet_…)", r"^lora_(unet|te\d?|transformer)_"),
    ("LyCORIS (lycoris_…)", r"^lycoris_"),
    ("peft (base_model.model.…)", r"^base_model\."),
    ("ComfyUI (diffusion_model.…)", r"^(model\.)?diffusion_model\."),
    ("DiffSynth (pipe.dit.…)", r"^pipe\."),
    ("diffusers (transformer.…)", r"^(transformer|unet|text_encoder)(_2)?\."),
)
_FAMILIES = (
    ("FLUX or HunyuanVideo", r"(double|single|single_transformer)_blocks"),
    ("Stable Diffusion or SDXL", r"(down|up|mid|input|output|middle)_blocks?[._]"),
    ("Stable Diffusion 3", r"joint_blocks"),
    ("LTX, CogVideoX or Qwen-Image", r"(^|[._])transformer_blocks"),
    ("Wan VACE", r"vace_"),
    ("Wan Animate", r"face_adapter|motion_encoder"),
)
_MAX_LINES = 8

_log = logger("weights.lora")


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of an adapter: what is done with it, and to which tensor of the base."""

    name: str
    layer: str
    """The layer under the file's own name."""
    role: Role
    target: str


def place_names(
    path: Path, names: Collection[str], table: NameTable
) -> tuple[list[Placed], list[str]]:
    """Return what has a place in the base, and the names of parts that it has not.

    Raises CheckpointError for another kind of adapter, and for what is done to a layer of the base
    in a way that is not known.
    """
    for method, pattern in _METHODS:
        if any(re.search(pattern, name) for name in names):
            raise CheckpointError(not_lora(path, method))
    cut = _common_prefix(names, table)
    placed: list[Placed] = []
    foreign: list[str] = []
    unknown: list[str] = []
    for name in names:
        found = _place(name, name[cut:], table)
        if found is not None:
            placed.append(found)
        else:
            (unknown if _is_unknown(name[cut:], table) else foreign).append(name)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} tensors change layers in a way that is not known:\n"
            f"{summarise_names(unknown, max_lines=_MAX_LINES)}\nExport the adapter as a plain LoRA."
        )
    return placed, foreign


def _common_prefix(names: Collection[str], table: NameTable) -> int:
    """Return the length of the words before every name that no program is known to put there."""
    first, last = min(names, default=""), max(names, default="")
    pairs = enumerate(zip(first, last, strict=False))
    length = next((index for index, (a, b) in pairs if a != b), min(len(first), len(last)))
    ends = [0, *(dot.end() for dot in re.finditer(r"\.", first[: min(length, 200)]))]
    return next((end for end in ends if any(_place(n, n[end:], table) for n in names)), 0)


def _place(name: str, short: str, table: NameTable) -> Placed | None:
    """Return the place of `name`, read as `short`; None where the base has none."""
    factor = _FACTOR.fullmatch(short)
    owner, _, leaf = short.rpartition(".")
    if factor:
        owner, role, leaf = factor["layer"], _SIDES[factor["side"].lower()], "weight"
        if factor["leaf"] == "bias" and role == "B":
            role, leaf = "add scaled", "bias"
        elif factor["leaf"] == "bias":
            return None
    elif leaf in _LEAVES:
        leaf, role = _LEAVES[leaf]
    else:
        owner, leaf, role = short, "", "set"
    found = table.find(owner)
    if found is None:
        return None
    target = f"{found}.{leaf}"
    if target not in table.tensors and role in ("add", "set"):
        target = found  # a difference of a tensor that no layer owns, such as a modulation
    return Placed(name, owner, role, target) if target in table.tensors else None


def _is_unknown(name: str, table: NameTable) -> bool:
    """Return whether a name lies below a layer of the base and does not say what it is."""
    if _FACTOR.fullmatch(name) or name.rpartition(".")[2] in _LEAVES:
        return False
    while name := name.rpartition(".")[0]:
        if f"{table.find(name)}.weight" in table.tensors:
            return True
    return False


def check_share(
    path: Path, base: Path, placed: Collection[Placed], foreign: Collection[str]
) -> None:
    """Warn of names without a place in the base.

    Raises CheckpointError where most have none: the adapter is for another model.
    """
    total = len(placed) + len(foreign)
    if not foreign and placed:
        return
    listed = summarise_names(foreign, max_lines=_MAX_LINES)
    if 2 * len(foreign) <= total and placed:
        _log.warning(
            "%s: %d of %d tensors are of parts that this model does not have, and are left out:\n%s",
            path.name, len(foreign), total, listed,
        )  # fmt: skip
        return
    if total == 0:
        raise CheckpointError(f"{path}: the adapter holds no tensors; download it again")
    scheme = _first(_SCHEMES, foreign)
    family = _first(_FAMILIES, foreign)
    seen = f" Its names are those of {scheme}." if scheme else ""
    other = f"; they look like {family}" if family else ""
    raise CheckpointError(
        f"{path}: {len(foreign)} of {total} tensors belong to no layer of {base}{other}; the "
        f"adapter is for another model.{seen} Tensors without a place:\n{listed}"
    )


def _first(table: Iterable[tuple[str, str]], names: Collection[str]) -> str | None:
    """Return the label of the first pattern that most names match."""
    counts = ((label, sum(bool(re.search(p, n)) for n in names)) for label, p in table)
    return next((label for label, count in counts if 2 * count > len(names)), None)
