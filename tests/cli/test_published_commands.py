"""The flags of the public Live Avatar scripts as they stand there, and the published numbers of GPUs."""

from __future__ import annotations

import shlex

import pytest

from lipcast.cli.compat_flags import accepted_flags
from lipcast.cli.generate import generate
from lipcast.cli.main import main
from lipcast.cli.plan import plan_request
from lipcast.cli.request import gpu_options
from lipcast.errors import NotBuiltError
from lipcast.planning.inputs import layout_constraints
from lipcast.planning.layouts import plan_layouts, with_enough_steps

ONE_GPU = (
    '--ulysses_size 1 --task s2v-14B --size "704*384" --base_seed 420 '
    "--training_config liveavatar/configs/s2v_causal_sft.yaml --offload_model True --convert_model_dtype "
    '--prompt "A stout, cheerful dwarf in his forge."  --image "examples/dwarven_blacksmith.jpg" '
    '--audio "examples/dwarven_blacksmith.wav" --infer_frames 48 --load_lora '
    '--lora_path_dmd "Quark-Vision/Live-Avatar" --sample_steps 4 --sample_guide_scale 0 --num_clip 10000 '
    "--num_gpus_dit 1 --sample_solver euler --single_gpu --ckpt_dir ckpt/Wan2.2-S2V-14B/ --fp8"
)
FIVE_GPUS = (
    '--ulysses_size 1 --task s2v-14B --size "720*400" --base_seed 420 '
    "--training_config liveavatar/configs/s2v_causal_sft.yaml --offload_model False --convert_model_dtype "
    '--prompt "A stout, cheerful dwarf in his forge."  --image "examples/dwarven_blacksmith.jpg" '
    '--audio "examples/dwarven_blacksmith.wav" --infer_frames 48 --load_lora '
    '--lora_path_dmd "Quark-Vision/Live-Avatar" --sample_steps 4 --sample_guide_scale 0 --num_clip 10000 '
    "--num_gpus_dit 4 --sample_solver euler --enable_vae_parallel --ckpt_dir ckpt/Wan2.2-S2V-14B/ --fp8"
)
PUBLISHED = (
    # processes, flags, what is planned
    (1, ONE_GPU, "1 stage, last stage decodes"),
    (5, FIVE_GPUS, "4 stages, VAE rank"),
    (4, "--num_gpus_dit 3 --ulysses_size 3", "1 stage, Ulysses 3, VAE rank"),
    (4, "--num_gpus_dit 3 --ulysses_size 3 --enable_vae_parallel", "1 stage, Ulysses 3, VAE rank"),
    (3, "--num_gpus_dit 3 --ulysses_size 3 --dit_fsdp --t5_fsdp", "1 stage, Ulysses 3, sharded weights"),
    (8, "--ulysses_size 8 --dit_fsdp --t5_fsdp --offload_model False", "1 stage, Ulysses 8, sharded weights"),
    (3, "--ulysses_size 3 --sample_steps 4", "1 stage, Ulysses 3, last stage decodes"),
    (2, "--num_gpus_dit 2 --ulysses_size 2", "1 stage, Ulysses 2, last stage decodes"),
    (
        4,
        '--num_gpus_dit 3 --enable_vae_parallel --dit_fsdp --size "688*368" --infer_frames 32 '
        "--sample_steps 3 --enable_online_decode",
        "3 stages, sharded weights, VAE rank",
    ),
)  # fmt: skip


@pytest.mark.parametrize(("processes", "words", "layout"), PUBLISHED)
def test_published_flags_parse_and_plan(processes: int, words: str, layout: str) -> None:
    flags = generate.parse(shlex.split(words))
    accepted_flags(flags)
    gpus = gpu_options(flags)
    constraints = layout_constraints(gpus, uses_all=True)  # as under torchrun
    if flags.get("dit_fsdp"):
        flags.pop("fp8", None)
    model = {key: value for key, value in flags.items() if key != "model"}
    request = plan_request(model | {"gpu": "h100", "ram": "1TB"})
    request = with_enough_steps(request, processes, constraints)
    best = plan_layouts(request, processes, constraints)[0]
    assert str(best.layout).startswith(layout) and best.layout.num_gpus == processes
    assert gpus.num_gpus <= processes


def test_flags_of_the_published_server_are_refused_with_the_reason() -> None:
    flags = generate.parse(shlex.split(f'{FIVE_GPUS} --server_port 7860 --server_name "0.0.0.0"'))
    with pytest.raises(NotBuiltError, match="is no server"):
        accepted_flags(flags)


@pytest.mark.parametrize(
    "words", ["--num_gpus_dit 3 --ulysses_size 3", "--gpus 4 --ulysses_size 3"]
)
def test_plan_shows_uneven_heads(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "h100", "--ram", "512GB", *words.split()]) == 0
    assert "Ulysses 3" in capsys.readouterr().out


def test_more_ranks_than_heads_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --model tiny --gpu h100 --num_gpus_dit 5 --ulysses_size 5"
    assert main(words.split()) == 2
    assert "the model has 4 attention heads" in capsys.readouterr().err
