"""Adapters: what is trained and what is not, every stored format, merging, continuing, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from faces import DrawnFaces
from safetensors import safe_open
from torch import Tensor

import lipcast
from lipcast.config.precision import Precision
from lipcast.errors import InputError, MemoryBudgetError, UsageError
from lipcast.models.dit import DiT
from lipcast.weights.bundle import load_bundle
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.quant_linear import QuantLinear
from lipcast_train.data.windows import WindowBatch
from lipcast_train.lora.adapters import AdaptedLinear, AdapterOptions, adapted_layers, parse_targets
from lipcast_train.lora.training import (
    LoraRequest,
    LoraResult,
    load_adapted,
    train_lora,
    training_shape,
)
from lipcast_train.networks.frozen import freeze
from lipcast_train.phases.transformer import FlowObjective
from lipcast_train.training.loop import Recipe
from lipcast_train.training.state import Progress
from synthetic import SMALL, write_synthetic

CPU = torch.device("cpu")
TINY = checkpoint_dir("tiny")
CONFIGS = replace(
    SMALL,
    dit=replace(
        SMALL.dit, dim=64, ffn_dim=128, num_heads=2, num_layers=2, audio_inject_layers=(0,),
        motion_encoding="repeat",
    ),
    vae=replace(SMALL.vae, dim=4),
)  # fmt: skip
SIDE = 64
Request = Callable[..., LoraRequest]
Train = Callable[..., LoraResult]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two narrow layers with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    write_synthetic(folder, CONFIGS, speech=TINY / "wav2vec2-tiny")
    return folder


@pytest.fixture
def request_for(small: Path, tmp_path: Path) -> Request:
    """A short training; every argument can be another."""

    def make(steps: int = 2, **changed: object) -> LoraRequest:
        request = LoraRequest(
            model=small,
            out=tmp_path / "style.safetensors",
            device=CPU,
            dtype=torch.float32,
            weights="fp32",
            recipe=Recipe(steps, 1, 1e-2, warmup_steps=1, weight_decay=0.0, average=0.5),
            available_bytes=1 << 40,
            adapters=AdapterOptions(rank=4, alpha=8.0),
            num_blocks=2,
            save_every_s=0.0,
        )
        return replace(request, **changed)

    return make


def batch_of(config_of: LoraRequest, *, seed: int = 0) -> WindowBatch:
    """One window of random latents for the small model."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    side, dit = SIDE // 8, CONFIGS.dit
    return WindowBatch(
        clean_BCFHW=random(1, 16, 6, side, side),
        noise_BCFHW=random(1, 16, 6, side, side),
        ref_BC1HW=random(1, 16, 1, side, side),
        motion_BCFHW=random(1, 16, 19, side, side),
        features_BLEV=random(1, dit.num_audio_layers, dit.audio_dim, 24),
        weights_B1HW=torch.ones(1, 1, side, side),
        prompts=("",),
        first_frames=(0,),
        distances=((5, 9),),
        levels=(0.3,),
    )


def objective_of(dit: DiT) -> FlowObjective:
    context = torch.randn(7, CONFIGS.dit.text_dim, generator=torch.Generator().manual_seed(9))
    return FlowObjective(dit, {"": context}, ring_frames=12)


def stir(adapters: dict[str, AdaptedLinear]) -> None:
    """Give every B values, so that every gradient is one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapted in adapters.values():
            adapted.lora_B.copy_(0.02 * torch.randn(adapted.lora_B.shape, generator=generator))


def gradients(request: LoraRequest, dit: DiT) -> dict[str, Tensor]:
    objective_of(dit)(batch_of(request)).backward()
    return {n: p.grad for n, p in dit.named_parameters() if p.grad is not None}


def frozen_state(dit: DiT) -> dict[str, Tensor]:
    """Everything but the adapters, under the names of the checkpoint."""
    named = dit.state_dict().items()
    return {n.replace(".base.", "."): t for n, t in named if ".lora_" not in n}


def test_gradients_reach_exactly_the_adapters(request_for: Request) -> None:
    dit, adapters = load_adapted(request_for())
    stir(adapters)
    found = gradients(request_for(), dit)
    wanted = {f"{layer}.lora_{side}" for layer in adapters for side in "AB"}
    assert found.keys() == wanted
    assert all(bool(gradient.any()) for gradient in found.values())
    assert {n for n, p in dit.named_parameters() if p.requires_grad} == wanted


def test_the_layers_are_those_of_the_published_adapter() -> None:
    layers = adapted_layers(CONFIGS.dit, AdapterOptions().targets)
    dit = DiT(CONFIGS.dit)
    leaves = ("q", "k", "v", "o", "ffn.0", "ffn.2")
    linears = {n for n, m in dit.named_modules() if isinstance(m, torch.nn.Linear)}
    assert layers.keys() == {n for n in linears if n.endswith(tuple(f".{leaf}" for leaf in leaves))}
    for layer, (num_out, num_in) in layers.items():
        assert dit.get_submodule(layer).weight.shape == (num_out, num_in)


@pytest.mark.parametrize("targets", ["ffn", "self_attn, audio"])
def test_targets_choose_layers(targets: str, request_for: Request) -> None:
    options = AdapterOptions(rank=2, alpha=2.0, targets=parse_targets(targets))
    dit, adapters = load_adapted(request_for(adapters=options))
    assert adapters.keys() == adapted_layers(CONFIGS.dit, options.targets).keys()
    assert sum(isinstance(m, AdaptedLinear) for m in dit.modules()) == len(adapters)


@pytest.mark.parametrize("text", ["", "ffn,head", "blocks.0"])
def test_unknown_targets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected some of self_attn, cross_attn, ffn, audio"):
        parse_targets(text)


def test_a_layer_that_runs_again_gives_the_same_gradients(
    request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for how in (freeze, partial(freeze, recompute=False)):
        monkeypatch.setattr("lipcast_train.lora.training.freeze", how)
        dit, adapters = load_adapted(request_for())
        stir(adapters)
        found.append(gradients(request_for(), dit))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weights", ["fp8", "int8", "int4"])
def test_stored_weights_give_the_gradients_of_what_they_stand_for(
    weights: Precision, request_for: Request
) -> None:
    request = request_for(weights=weights)
    dit, adapters = load_adapted(request)
    stored = [a.base for a in adapters.values()]
    assert all(isinstance(base, QuantLinear) for base in stored)
    plain, plain_adapters = load_adapted(request_for())
    with torch.no_grad():
        for layer, adapted in plain_adapters.items():
            adapted.base.weight.copy_(adapters[layer].base.weight)
        for name, parameter in dit.named_parameters():  # rounded to 16 bits beside stored weights
            if ".lora_" not in name:
                plain.get_parameter(name).copy_(parameter)
        for name, module in dit.named_modules():
            if isinstance(module, QuantLinear) and not name.endswith(".base"):
                plain.get_submodule(name).weight.copy_(module.weight)
    for each in (adapters, plain_adapters):
        stir(each)
    found, wanted = gradients(request, dit), gradients(request, plain)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["bf16", "int4"])
def test_training_leaves_the_weights_as_they_are(weights: Precision, request_for: Request) -> None:
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    request = request_for(weights=weights, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        loaded = []
        patch.setattr(
            "lipcast_train.lora.training.load_adapted",
            lambda r: loaded.append(load_adapted(r)) or loaded[-1],
        )
        result = train_lora(request, DrawnFaces(count=1))
    after, before = frozen_state(loaded[0][0]), frozen_state(load_adapted(request)[0])
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        same = torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        assert same, name
    moved = loaded[0][1]["blocks.0.self_attn.q"].lora_B
    assert bool(moved.any()) and result.progress.step == 2


def test_merging_the_file_gives_the_trained_model(request_for: Request) -> None:
    request = request_for(3, adapters=AdapterOptions(rank=4, alpha=8.0))
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "lipcast_train.lora.training.load_adapted",
            lambda r: loaded.append(load_adapted(r)) or loaded[-1],
        )
        train_lora(request, DrawnFaces(count=1))
    how = {"device": CPU, "dtype": torch.float32, "networks": ("dit",)}
    merged = load_bundle(request.model, loras=[str(request.out)], **how).dit
    plain = load_bundle(request.model, **how).dit
    batch = batch_of(request)
    with torch.no_grad():
        trained, found, untrained = (
            float(objective_of(dit)(batch)) for dit in (loaded[0][0], merged, plain)
        )
    assert found == pytest.approx(trained, rel=1e-5)
    assert abs(untrained - trained) > 100 * abs(found - trained)


def test_the_file_has_the_official_names_and_says_its_alpha(
    request_for: Request, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(1)
    train_lora(request, DrawnFaces(count=1))
    layers = adapted_layers(CONFIGS.dit, request.adapters.targets)
    with safe_open(request.out, "pt") as file:
        assert set(file.keys()) == {
            f"base_model.model.{layer}.lora_{side}.default.weight"
            for layer in layers
            for side in "AB"
        }
        assert file.metadata()["lora_alpha"] == "8"
    how = {"device": CPU, "dtype": torch.float32, "networks": ("dit",)}
    load_bundle(request.model, loras=[str(request.out)], **how)
    assert not [r for r in caplog.records if "alpha" in r.getMessage()]


def stopped(request: LoraRequest, at: int) -> None:
    """Train until a step is made that nothing has saved."""

    def stop(_: str, progress: Progress, _steps: int) -> None:
        if progress.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lora(request, DrawnFaces(count=2), progress=stop)


@pytest.mark.slow
def test_a_training_that_was_stopped_continues_to_the_same_file(
    request_for: Request, tmp_path: Path
) -> None:
    whole = request_for(5, out=tmp_path / "whole.safetensors")
    expected = train_lora(whole, DrawnFaces(count=2))
    request = request_for(5)
    stopped(request, at=3)
    assert not request.out.exists()
    resumed = train_lora(replace(request, resume=True), DrawnFaces(count=2))
    assert request.out.read_bytes() == whole.out.read_bytes()
    assert resumed.progress.losses == pytest.approx(expected.progress.losses, abs=1e-6)
    assert (resumed.loss_before, resumed.loss_after) == (expected.loss_before, expected.loss_after)


def test_a_state_is_not_overwritten_nor_continued_with_other_settings(request_for: Request) -> None:
    request = request_for(5)
    stopped(request, at=2)
    with pytest.raises(UsageError, match="come to step 1; give --resume"):
        train_lora(request, DrawnFaces(count=2))
    other = replace(request, resume=True, seed=4, adapters=AdapterOptions(rank=2, alpha=8.0))
    with pytest.raises(UsageError, match=r"other settings \(rank, seed\)"):
        train_lora(other, DrawnFaces(count=2))


def test_clips_are_encoded_once(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    source = DrawnFaces(count=2)
    train_lora(request_for(1), source)
    monkeypatch.setattr("lipcast_train.data.cache.encode_clip", _never)
    monkeypatch.setattr("lipcast_train.lora.training.load_text_encoder", _never)
    train_lora(request_for(1, resume=True), source)


def _never(*_: object, **__: object) -> None:
    raise AssertionError("encoded again")


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipcast_train.lora.training.load_bundle", _never)
    lines: list[str] = []
    request = request_for(available_bytes=1 << 20)
    with pytest.raises(MemoryBudgetError, match=r"needs \d+ MiB, and 1 MiB are there"):
        train_lora(request, DrawnFaces(count=1), report=lines.append)
    assert "frozen weights" in lines[0]


@pytest.mark.parametrize(("count", "frames"), [(0, 24), (1, 8)])
def test_clips_that_teach_nothing_are_refused(
    count: int, frames: int, request_for: Request
) -> None:
    with pytest.raises(InputError, match=r"no clips to train on|shortest clip has 8 frames"):
        train_lora(request_for(), DrawnFaces(count=count, num_frames=frames))


def test_memory_is_planned_without_decoding_a_clip(
    request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DrawnFaces, "clip", _never)
    geometry = training_shape(request_for(), DrawnFaces(count=1, side=128)).geometry
    assert (geometry.height, geometry.width) == (128, 128)


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraResult]:
    """An adapter of the embedded model, trained on faces unlike those that it knows."""
    out = tmp_path_factory.mktemp("style") / "style.safetensors"
    recipe = Recipe(24, 1, 1e-2, warmup_steps=3, weight_decay=0.0, average=0.8)
    options = AdapterOptions(rank=8, alpha=8.0)
    yield train_lora(
        LoraRequest(TINY, out, CPU, torch.float32, "fp32", recipe, 8 << 30, options, num_blocks=2),
        DrawnFaces(count=2),
    )


@pytest.mark.slow
def test_the_loss_on_the_clips_falls(style: LoraResult) -> None:
    assert style.loss_after < 0.6 * style.loss_before


@pytest.mark.slow
def test_the_adapter_changes_the_frames(
    style: LoraResult, portrait: Path, sound: Callable[[float], Path]
) -> None:
    voice = sound(0.48)

    def first_frames(*loras: str) -> Tensor:
        model = lipcast.load("tiny", device="cpu", precision="fp32", loras=list(loras))
        blocks = model.stream(image=portrait, audio=voice, size="64*64", num_clip=1, sample_steps=1)
        with blocks:
            return torch.from_numpy(next(iter(blocks)).frames).float()

    plain, styled = first_frames(), first_frames(str(style.path))
    assert float((plain - styled).abs().mean()) > 2.0
