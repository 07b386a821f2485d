"""Every phase is trained, resumes to the step, and ends as a checkpoint that `lipcast` runs."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faces import DrawnFaces
from micro import micro

import lipcast
from lipcast.engine.speech_features import FeatureStream
from lipcast.models.upload import as_video
from lipcast.models.vae import Encoder, VideoVAE
from lipcast_train.data.cache import LatentCache, encode_clip
from lipcast_train.data.pool import ClipPool
from lipcast_train.long_video import measure_long_video, sound_of
from lipcast_train.networks.autoencoder import decode_raw, encode_moments, encode_normalised
from lipcast_train.networks.build import build_networks
from lipcast_train.networks.voices import encode_voice
from lipcast_train.phases.autoencoder import FootageBatches, autoencoder_phase
from lipcast_train.report import (
    CLIP_GATES,
    GATES,
    compare_reports,
    measure_clip,
    report_of,
)
from lipcast_train.run import train_all
from lipcast_train.training.devices import Devices, Share
from lipcast_train.training.loop import LoopSettings, Phase, run_phase
from lipcast_train.training.state import read_progress

CPU = Devices(torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has seen two steps of every phase."""
    folder = tmp_path_factory.mktemp("trained")
    return train_all(micro(), DrawnFaces(2), CPU, LoopSettings(folder)), folder


@pytest.mark.slow
def test_all_phases_end_in_a_checkpoint_that_speaks(trained):
    result, folder = trained
    assert result.is_finished
    assert list(result.phases) == [
        "speech", "autoencoder", "decoder", "transformer", "few-steps",
    ]  # fmt: skip
    assert all(done.step == 2 for done in result.phases.values())
    assert len(list((folder / "samples").glob("*.png"))) == 4
    clip = DrawnFaces(3).clip(2)
    model = lipcast.load(
        str(result.model), device="cpu", decoder=result.model / "taew2_1.safetensors"
    )
    sound = sound_of(clip.wave_N)
    frames = model.generate(image=clip.portrait_HWC, audio=sound, prompt=clip.prompt).frames
    assert frames.shape == (24, 64, 64, 3)
    card = (result.model / "README.md").read_text("utf-8")
    assert "license: apache-2.0" in card and "transformer: 2 steps" in card
    check = ["sha256sum", "-c", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=result.model, check=False).returncode == 0


@pytest.mark.slow
def test_joins_and_drift_of_a_longer_video_are_measured(trained):
    clip = DrawnFaces(1).clip(0)
    figures = measure_long_video(lipcast.load(str(trained[0].model), device="cpu"), clip, seconds=4)
    assert set(CLIP_GATES) | set(figures) == set(GATES)
    assert all(value is not None and np.isfinite(value) for value in figures.values())
    assert figures["join_48"] != figures["join_32"] > 0


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(trained):
    result, folder = trained
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    again = train_all(micro(), DrawnFaces(2), CPU, LoopSettings(folder))
    assert again.phases == result.phases
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == before


@pytest.mark.slow
def test_two_processes_train_as_one(trained, tmp_path):
    """Each has a share of every batch, weights and optimiser are sharded, and the losses are the same."""
    program = Path(__file__).with_name("train_micro.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [sys.executable, *launcher, str(program), str(tmp_path)], check=True, timeout=600
    )
    result, _ = trained
    for name, alone in result.phases.items():
        together = read_progress(tmp_path / f"{name}.safetensors")
        assert together.losses == pytest.approx(alone.losses, rel=5e-3), name
    together, alone = (folder / "model" for folder in (tmp_path, result.model.parent))
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}


def pictures(steps: int) -> Phase:
    preset = micro(steps)
    networks = build_networks(preset.sizes, seed=1)
    batches = FootageBatches(
        ClipPool(DrawnFaces(2)), (9,), size=2, seed=0, device=torch.device("cpu")
    )
    return replace(autoencoder_phase(networks.vae, preset.autoencoder, batches), sample=None)


@pytest.mark.slow
def test_a_training_that_was_stopped_gives_the_losses_of_one_that_was_not(tmp_path):
    whole = run_phase(pictures(4), CPU, LoopSettings(tmp_path / "a"))
    phase, stopped = pictures(4), tmp_path / "b"

    class KilledError(Exception):
        """Like a power cut: after the third step nothing is saved any more."""

    def kill(_name, progress, _total):
        if progress.step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run_phase(phase, CPU, LoopSettings(stopped, save_every_s=0, report=kill))
    assert read_progress(stopped / "autoencoder.safetensors").step == 2
    resumed = run_phase(pictures(4), CPU, LoopSettings(stopped))
    assert resumed == read_progress(stopped / "autoencoder.safetensors")
    assert whole.losses == resumed.losses
    files = [
        (folder / "autoencoder.safetensors").read_bytes() for folder in (tmp_path / "a", stopped)
    ]
    assert files[0] == files[1]


def test_a_training_stops_at_its_deadline_and_goes_on(tmp_path):
    early = run_phase(pictures(1), CPU, LoopSettings(tmp_path, deadline=-math.inf))
    assert early.step == 0
    assert not list(tmp_path.glob("*.safetensors"))
    assert run_phase(pictures(1), CPU, LoopSettings(tmp_path)).step == 1


def test_chunks_of_training_are_the_stream_of_the_autoencoder():
    vae: VideoVAE = build_networks(micro().sizes, seed=3).vae
    video = torch.rand(1, 3, 13, 64, 64) * 2 - 1
    with torch.inference_mode():
        mean, _ = encode_moments(vae, video)
        made = decode_raw(vae, mean).clamp(-1, 1)
        for module in vae.modules():
            module.__dict__.pop("convolve", None)
        assert torch.allclose(vae.encode(video), mean, atol=1e-4)
        assert torch.allclose(vae.decode(mean), made, atol=1e-4)


def test_features_are_those_of_the_engine():
    speech = build_networks(micro().sizes, seed=3).speech
    wave = DrawnFaces(1).clip(0).wave_N
    stream = FeatureStream(
        speech, video_frames_per_block=12, num_samples=len(wave), mean=float(wave.mean(dtype="f8")),
        std=float(wave.std(dtype="f8")),
    )  # fmt: skip
    stream.push(wave)
    stream.finish()
    blocks = [stream.take(block) for block in range(2)]
    with torch.inference_mode():
        features = encode_voice(speech, torch.from_numpy(wave), 24)
    assert torch.allclose(torch.cat(blocks, dim=2), features, atol=1e-4)


def test_a_clip_is_encoded_in_the_memory_of_one_latent(monkeypatch):
    networks, clip = build_networks(micro().sizes, seed=3), DrawnFaces(1).clip(0)
    frames = np.concatenate([np.repeat(clip.portrait_HWC[None], 9, axis=0), clip.frames_THWC])
    with torch.inference_mode():
        whole = encode_normalised(networks.vae, as_video(frames, CPU.device))[0]
    encoder, seen = networks.vae.encoder, []
    assert isinstance(encoder, Encoder)
    encode = encoder.forward
    monkeypatch.setattr(
        encoder,
        "forward",
        lambda x, state: (seen.append(x.shape[2]), encode(x, state))[1],
    )
    found = encode_clip(clip, networks.vae, networks.speech, device=CPU.device)
    assert max(seen) == networks.vae.config.temporal_factor and sum(seen) == len(frames)
    both = torch.cat([found.still_CFHW, found.latents_CFHW], dim=1)
    torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-4)


def test_clips_without_room_are_encoded_again(tmp_path):
    """The first ones stay, in memory and in the folder; what a full folder gives is the same."""
    networks, source = build_networks(micro().sizes, seed=1), DrawnFaces(2)

    def cache(most):
        return LatentCache(
            tmp_path / str(most), ClipPool(source), networks.vae, networks.speech,
            identity="a", device=torch.device("cpu"), max_bytes=most,
        )  # fmt: skip

    whole, small = cache(1 << 30), cache(0)
    for _ in range(2):
        for index in range(2):
            assert torch.equal(whole.clip(index).latents_CFHW, small.clip(index).latents_CFHW)
    assert [len(list((tmp_path / str(most)).iterdir())) for most in (1 << 30, 0)] == [2, 0]
    assert torch.equal(cache(1 << 30).clip(1).latents_CFHW, whole.clip(1).latents_CFHW)


def test_shares_of_two_processes_are_the_batch():
    items = list(range(6))
    assert Share(0, 2).of(items) == [0, 2, 4]
    assert Share(1, 2).of(items) == [1, 3, 5]


def test_a_report_knows_a_mouth_that_follows_from_one_that_does_not():
    clip = DrawnFaces(1, num_frames=48).clip(0)
    good = measure_clip(0, clip, clip.frames_THWC)
    late = measure_clip(0, clip, clip.frames_THWC[::-1])
    assert good.lip_sync is not None and good.lip_sync > 0.97
    assert late.lip_sync is not None and late.lip_sync < 0.5
    assert good.still_psnr is not None and good.still_psnr > 70
    reports = [report_of(name, [row]) for name, row in (("late", late), ("good", good))]
    assert compare_reports(*reports).is_better
    assert not compare_reports(*reversed(reports)).is_better
    assert not compare_reports(reports[0], reports[0]).is_better
