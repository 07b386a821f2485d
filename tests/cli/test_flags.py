"""Every flag of the public scripts is used, accepted with a reason, or refused with one."""

from __future__ import annotations

import re
from collections import Counter

import click
import pytest
from parsing import flags, parse

from lipcast.api import make_options
from lipcast.cli.batch import options_of
from lipcast.cli.command import Option, Section
from lipcast.cli.compat_flags import COMPAT_FLAGS, CompatFlag, accepted_flags
from lipcast.cli.main import main
from lipcast.cli.options import OPTIONS
from lipcast.cli.request import precision
from lipcast.config.generate_options import EARLIER_NAMES, OPTION_NAMES, GenerateOptions
from lipcast.config.gpu_options import GPU_OPTION_NAMES
from lipcast.config.memory_options import MEMORY_OPTION_NAMES
from lipcast.config.tables import Row
from lipcast.errors import NotBuiltError, UsageError

# What the argument parsers of the public scripts know (command line, web page, batch).
PUBLIC = (
    "task",
    "size",
    "frame_num",
    "ckpt_dir",
    "offload_model",
    "ulysses_size",
    "t5_fsdp",
    "t5_cpu",
    "dit_fsdp",
    "save_file",
    "save_dir",
    "prompt",
    "use_prompt_extend",
    "prompt_extend_method",
    "prompt_extend_model",
    "prompt_extend_target_lang",
    "base_seed",
    "image",
    "sample_solver",
    "sample_steps",
    "sample_shift",
    "sample_guide_scale",
    "convert_model_dtype",
    "num_clip",
    "audio",
    "enable_tts",
    "tts_prompt_audio",
    "tts_prompt_text",
    "tts_text",
    "pose_video",
    "start_from_ref",
    "infer_frames",
    "load_lora",
    "lora_path",
    "lora_path_dmd",
    "training_config",
    "use_dataset",
    "dataset_sample_idx",
    "drop_motion_noisy",
    "single_gpu",
    "using_merged_ckpt",
    "num_gpus_dit",
    "enable_vae_parallel",
    "offload_kv_cache",
    "enable_online_decode",
    "fp8",
    "server_port",
    "server_name",
    "sample_list",
)
ALL_NAMES = [word.lstrip("-") for option in OPTIONS for word in option.opts]
DRIVEN = {"image", "audio", "prompt", "prompt_embedding", "output", "save_dir", "model", "lora",
          "device", "precision", "fp8", "decoder", "segment", "sign", "json", "quiet", "verbose", "debug",
          "base_seed", "text", "tts", "tts_voice", "tts_model", "prompts", "character",
          "pose_video", "pose_end", "continue_from"}  # fmt: skip
REFUSED = [flag for flag in COMPAT_FLAGS if flag.is_refused]


def test_every_public_flag_is_known() -> None:
    assert set(PUBLIC) <= set(ALL_NAMES)
    assert [name for name, count in Counter(ALL_NAMES).items() if count > 1] == []


def test_every_flag_that_sets_something_sets_what_exists() -> None:
    names = {option.name for option in OPTIONS} - {flag.name for flag in COMPAT_FLAGS}
    options = {*OPTION_NAMES, *MEMORY_OPTION_NAMES, *GPU_OPTION_NAMES} - {"seed", "pose"}
    assert names == options | DRIVEN


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_flag_explains_itself(option: Option) -> None:
    assert option.help and option.help.endswith(".")
    assert option.hidden is (option.section is Section.REFUSED)


@pytest.mark.parametrize("flag", COMPAT_FLAGS, ids=lambda flag: flag.name)
def test_every_compatibility_flag_has_a_reason(flag: CompatFlag) -> None:
    assert flag.otherwise if flag.is_refused else flag.reason
    assert flag.otherwise or flag.values in {None, (True,)}


@pytest.mark.parametrize("flag", REFUSED, ids=lambda flag: flag.name)
def test_refused_flags_say_what_to_do(flag: CompatFlag, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--{flag.name}"] if flag.is_switch else [f"--{flag.name}", "1"]
    assert main(["generate", *words]) == NotBuiltError.exit_code
    assert re.match(rf"lipcast: --{flag.name}: .{{20,}}\n$", capsys.readouterr().err)


def test_the_public_script_for_one_gpu_with_a_merged_checkpoint() -> None:
    values = parse(
        *("--ulysses_size", "1", "--task", "s2v-14B", "--size", "704*384", "--base_seed", "420"),
        *("--training_config", "liveavatar/configs/s2v_causal_sft.yaml", "--offload_model", "True"),
        *("--convert_model_dtype", "--infer_frames", "48", "--sample_steps", "4"),
        *("--sample_guide_scale", "0", "--num_clip", "10000", "--num_gpus_dit", "1"),
        *("--sample_solver", "euler", "--single_gpu", "--enable_online_decode"),
        "--using_merged_ckpt",
    )
    accepted = accepted_flags(values)
    assert {name: value for name, value in values.items() if name not in accepted} == {
        "size": "704*384",
        "base_seed": 420,
        "infer_frames": 48,
        "sample_steps": 4,
        "num_clip": 10000,
        "offload_model": True,
        "num_gpus_dit": 1,
        "ulysses_size": 1,
    }
    assert set(accepted) == {
        "task", "training_config", "convert_model_dtype",
        "sample_guide_scale", "sample_solver", "single_gpu", "enable_online_decode",
        "using_merged_ckpt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "t2v-A14B"),
        ("sample_solver", "unipc"),
        ("sample_guide_scale", "4.5"),
        ("sample_guide_scale", "nan"),
        ("sample_shift", "5"),
        ("sample_shift", "inf"),
    ],
)
def test_other_values_of_accepted_flags_are_refused(name: str, value: str) -> None:
    with pytest.raises(NotBuiltError, match=rf"^--{name}: expected .*; got {value}$"):
        accepted_flags(parse(f"--{name}", value))


def test_offloading_is_a_setting() -> None:
    values = parse("--offload_model", "True", "--offload-kv-cache", "--vram", "12GB", "--t5_cpu")
    assert set(accepted_flags(values)) == {"t5_cpu"}
    del values["t5_cpu"]
    assert values == {"offload_model": True, "offload_kv_cache": True, "vram": "12GB"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("infer_frames", "4.5"),
        ("base_seed", ""),
        ("sample_guide_scale", "much"),
        ("offload_model", "maybe"),
        ("segment", "soon"),
        ("precision", "fp7"),
    ],
)
def test_a_value_of_the_wrong_type(name: str, value: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(f"--{name}", value)
    assert f"'--{name}'" in caught.value.format_message()
    assert repr(value) in caught.value.format_message()


def test_fp8_is_a_precision_and_contradicts_another() -> None:
    assert precision(parse("--fp8")) == "fp8"
    assert precision(parse("--fp8", "--precision", "fp8")) == "fp8"
    assert precision(parse("--precision", "int4")) == "int4"
    with pytest.raises(
        UsageError, match=r"^--fp8: asks for precision fp8, and --precision for int4"
    ):
        precision(parse("--fp8", "--precision", "int4"))


def test_earlier_names_of_options_stay_known_and_are_not_in_the_help() -> None:
    given = parse("--anchor", "image", "--no-swap-anchor")
    assert given == {"reference_encoding": "image", "swap_reference": False}
    assert parse(*flags(anchor="image", swap_anchor="no")) == given
    assert options_of(Row("row 1", {"Anchor": "image", "swap anchor": "no"})) == given
    assert make_options({"anchor": "image", "swap_anchor": False}) == GenerateOptions(**given)
    assert not set(EARLIER_NAMES) & set(ALL_NAMES)


def test_the_public_script_with_an_adapter() -> None:
    for spelling in ("--lora", "--lora_path", "--lora_path_dmd"):
        values = parse("--load_lora", spelling, "Quark-Vision/Live-Avatar")
        assert values == {"load_lora": True, "lora": ("Quark-Vision/Live-Avatar",)}
        assert set(accepted_flags(values)) == {"load_lora"}
