"""Every flag of the public scripts is used, accepted with a reason, or refused with one."""

from __future__ import annotations

from collections import Counter

import pytest

from lipcast.cli.flag import CompatNoOp, Flag, Group, Kind, SetsOption, Unsupported
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.validate import RawFlags, validate
from lipcast.config.generate_options import OPTION_NAMES
from lipcast.errors import NotBuiltError, UsageError
from lipcast.planning.gpu_options import GPU_OPTION_NAMES
from lipcast.planning.memory_options import MEMORY_OPTION_NAMES

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
BY_NAME = {flag.name: flag for flag in FLAGS}
ALL_NAMES = [spelling.split("/")[0].lstrip("-") for flag in FLAGS for spelling in flag.spellings]
DRIVEN = {"image", "audio", "prompt", "prompt_embedding", "output", "save_dir", "model", "lora",
          "device", "precision", "decoder", "segment", "json", "quiet", "verbose", "debug"}  # fmt: skip


def given(**values: RawFlags) -> dict[str, RawFlags]:
    return values


def test_every_public_flag_is_known() -> None:
    assert set(PUBLIC) <= set(ALL_NAMES)
    assert [name for name, count in Counter(ALL_NAMES).items() if count > 1] == []


def test_every_flag_that_sets_something_sets_what_exists() -> None:
    targets = {flag.target for flag in FLAGS if isinstance(flag.rule, SetsOption)}
    assert targets == {*OPTION_NAMES, *MEMORY_OPTION_NAMES, *GPU_OPTION_NAMES, *DRIVEN}


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_explains_itself(flag: Flag) -> None:
    assert flag.help.endswith(".")
    assert isinstance(flag.rule, Unsupported) == (flag.group is Group.REFUSED)
    if isinstance(flag.rule, CompatNoOp):
        assert flag.rule.because
        assert flag.rule.otherwise or flag.rule.values in {None, (True,)}


@pytest.mark.parametrize(
    "flag", [f for f in FLAGS if isinstance(f.rule, Unsupported)], ids=lambda f: f.name
)
def test_refused_flags_say_what_to_do(flag: Flag) -> None:
    value: RawFlags = True if flag.kind is Kind.SWITCH else "1"
    with pytest.raises(NotBuiltError, match=rf"^--{flag.name}: .{{20,}}"):
        validate({flag.name: value})


def test_the_public_script_for_one_gpu_with_a_merged_checkpoint() -> None:
    parsed = validate(
        given(
            ulysses_size="1",
            task="s2v-14B",
            size="704*384",
            base_seed="420",
            training_config="liveavatar/configs/s2v_causal_sft.yaml",
            offload_model="True",
            convert_model_dtype=True,
            infer_frames="48",
            sample_steps="4",
            sample_guide_scale="0",
            num_clip="10000",
            num_gpus_dit="1",
            sample_solver="euler",
            single_gpu=True,
            enable_online_decode=True,
            using_merged_ckpt=True,
        ),
    )
    assert parsed.settings == {
        "size": "704*384",
        "seed": 420,
        "infer_frames": 48,
        "sample_steps": 4,
        "num_clip": 10000,
        "offload_model": True,
        "num_gpus_dit": 1,
        "ulysses_size": 1,
    }
    assert set(parsed.accepted) == {
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
        ("sample_shift", "5"),
    ],
)
def test_other_values_of_accepted_flags_are_refused(name: str, value: str) -> None:
    with pytest.raises(NotBuiltError, match=rf"^--{name}: expected .*; got"):
        validate({name: value})


def test_offloading_is_a_setting() -> None:
    flags = given(offload_model="True", offload_kv_cache=True, vram="12GB", t5_cpu=True)
    parsed = validate(flags)
    assert parsed.settings == {"offload_model": True, "offload_kv_cache": True, "vram": "12GB"}
    assert set(parsed.accepted) == {"t5_cpu"}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("infer_frames", "4.5", "a whole number"),
        ("base_seed", "", "a whole number"),
        ("sample_guide_scale", "much", "a number"),
        ("sample_guide_scale", "nan", "a number"),
        ("sample_shift", "inf", "a number"),
        ("offload_model", "maybe", "True or False"),
    ],
)
def test_a_value_of_the_wrong_kind(name: str, value: str, expected: str) -> None:
    with pytest.raises(UsageError, match=f'^--{name}: expected {expected}, got "{value}"$'):
        validate({name: value})


def test_fp8_is_a_precision_and_contradicts_another() -> None:
    assert validate(given(fp8=True)).settings == {"precision": "fp8"}
    assert validate(given(fp8=True, precision="fp8")).settings == {"precision": "fp8"}
    with pytest.raises(
        UsageError, match=r"^--fp8: asks for precision fp8, and --precision for int4"
    ):
        validate(given(fp8=True, precision="int4"))


def test_the_public_script_with_an_adapter() -> None:
    flags = given(load_lora=True, lora="Quark-Vision/Live-Avatar", training_config="a.yaml")
    parsed = validate(flags)
    assert parsed.settings == {"lora": "Quark-Vision/Live-Avatar"}
    assert set(parsed.accepted) == {"load_lora", "training_config"}
    assert set(BY_NAME["lora"].spellings) == {"--lora", "--lora_path", "--lora_path_dmd"}
