"""The flags of the public Live Avatar scripts that set nothing here: accepted, or refused with the reason.

Input: the values that were given. Output: the reason for each accepted flag; raises NotBuiltError for what
this version cannot do. Flags of those scripts that do set something are among the options of `generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lipcast.cli.command import Option, Section
from lipcast.errors import NotBuiltError

_SWITCH = (True,)


@dataclass(frozen=True, slots=True)
class CompatFlag:
    """A flag that is accepted for one of `values` (None: any; empty: never), and why.

    `otherwise` is the error for any other value.
    """

    name: str
    reason: str = ""
    values: tuple[Any, ...] | None = _SWITCH
    otherwise: str = ""
    is_switch: bool = True

    @property
    def is_refused(self) -> bool:
        return self.values == ()

    def option(self) -> Option:
        """Return the flag as an option; refused flags are not shown in the help."""
        text = self.otherwise if self.is_refused else self.reason
        if self.values and not self.is_switch:
            text = f"{' or '.join(map(str, self.values))}: {text}."
        else:
            text = f"{text[0].upper()}{text[1:]}."
        section = Section.REFUSED if self.is_refused else Section.COMPATIBILITY
        how: dict[str, Any] = {"is_flag": True, "default": False}
        if not self.is_switch:
            is_number = self.values and not isinstance(self.values[0], str)
            how = {"type": float if is_number else str, "metavar": "VALUE"}
        return Option(self.name, text, section=section, hidden=self.is_refused, **how)

    def accept(self, value: Any) -> str:
        """Return why `value` is accepted; raises NotBuiltError where it is not."""
        if self.is_refused:
            raise NotBuiltError(f"--{self.name}: {self.otherwise}")
        if self.values is not None and value not in self.values:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise NotBuiltError(f"--{self.name}: {self.otherwise}; got {shown}")
        return self.reason


def _valued(name: str, reason: str, values: tuple[Any, ...], otherwise: str) -> CompatFlag:
    return CompatFlag(name, reason, values, otherwise, is_switch=False)


def _refused(sentence: str, *, switches: str = "", valued: str = "") -> tuple[CompatFlag, ...]:
    return (
        *(CompatFlag(name, values=(), otherwise=sentence) for name in switches.split()),
        *(_valued(name, "", (), sentence) for name in valued.split()),
    )


_PROMPT = "the prompt is used as it is written; write it in full and leave this out"
_SPEECH = "voices are not cloned here; give words to speak as --text, or a sound as --audio"
_LISTS = (
    "lists of inputs are not read here; use --image and --audio, or `lipcast job submit --batch`"
)
COMPAT_FLAGS: tuple[CompatFlag, ...] = (
    _valued(
        "task", "speech to video is the only task", ("s2v-14B",),
        "expected s2v-14B; Lipcast makes video from speech only",
    ),
    _valued(
        "sample_solver", "Euler is the only solver", ("euler",),
        "expected euler, the solver that the model is distilled for",
    ),
    _valued(
        "sample_guide_scale", "the model is distilled to need no guidance", (0, 1),
        "expected 0; the model is distilled without classifier-free guidance",
    ),
    _valued(
        "sample_shift", "the timesteps of the distilled model have shift 3", (3,),
        "expected 3, the shift that the model is distilled for",
    ),
    CompatFlag("enable_online_decode", "every block is decoded as soon as it is denoised"),
    CompatFlag("convert_model_dtype", "weights have the precision of the computation"),
    CompatFlag(
        "using_merged_ckpt", "an adapter is merged only if it is named or lies beside the weights"
    ),
    CompatFlag("load_lora", "an adapter that is named or lies beside the weights is merged"),
    CompatFlag(
        "training_config", "rank and alpha of an adapter are read from its file", values=None,
        is_switch=False,
    ),
    CompatFlag("single_gpu", "one GPU makes the video unless several are asked for"),
    CompatFlag("t5_fsdp", "the text encoder runs on the CPU, in host memory"),
    CompatFlag("t5_cpu", "the text encoder runs on the CPU"),
    *_refused("the audio decides the length; bound it with --num_clip", valued="frame_num"),
    *_refused(
        "keeping the portrait as the first frame is not in this version; leave it out",
        switches="start_from_ref",
    ),
    *_refused(
        "leaving out the motion tokens is not in this version; leave it out",
        switches="drop_motion_noisy",
    ),
    *_refused(
        _PROMPT, switches="use_prompt_extend",
        valued="prompt_extend_method prompt_extend_model prompt_extend_target_lang",
    ),
    *_refused(
        _SPEECH, switches="enable_tts", valued="tts_prompt_audio tts_prompt_text tts_text"
    ),
    *_refused(_LISTS, switches="use_dataset", valued="dataset_sample_idx sample_list"),
    *_refused(
        "`lipcast generate` is no server; make one video with each call",
        valued="server_port server_name",
    ),
)  # fmt: skip
BY_NAME: Mapping[str, CompatFlag] = MappingProxyType({flag.name: flag for flag in COMPAT_FLAGS})


def accepted_flags(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the reason for each accepted flag among `values`. Raises NotBuiltError."""
    return {name: BY_NAME[name].accept(value) for name, value in values.items() if name in BY_NAME}
