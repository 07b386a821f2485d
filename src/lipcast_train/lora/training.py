"""Train adapters of a checkpoint on clips: plan, encode, load, train, write.

Input: `LoraRequest` and a source of clips. Output: an adapter file under the names of the published adapter,
and `LoraResult`. Beside the file lies a folder with the state of the training and the encoded clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lipcast.config.geometry import Geometry
from lipcast.config.models import VIDEO_FRAMES_PER_LATENT, Models
from lipcast.config.precision import Precision
from lipcast.engine.loading import read_precision
from lipcast.env import cache_dir
from lipcast.errors import InputError, UsageError
from lipcast.models.dit import DiT
from lipcast.weights.bundle import load_bundle, load_text_encoder, open_transformer
from lipcast.weights.checkpoint import CheckpointFiles, find_checkpoint
from lipcast.weights.configs import read_configs
from lipcast.weights.load import load_into, without_memory
from lipcast.weights.prompts import PromptCache, PromptEmbedding
from lipcast.weights.writer import write_tensors
from lipcast_train.data.cache import STILL_LATENTS, EncodedClip, LatentCache
from lipcast_train.data.clips import ClipSource
from lipcast_train.data.pool import ClipPool, dice
from lipcast_train.data.stamp import stamp_of
from lipcast_train.data.windows import (
    WindowBatch,
    WindowShape,
    collate,
    draw_window,
    window_batches,
)
from lipcast_train.lora.adapters import AdaptedLinear, AdapterOptions, adapter_tensors, add_adapters
from lipcast_train.lora.memory import TrainingMemory, TrainingShape, check_memory, plan_memory
from lipcast_train.networks.frozen import freeze
from lipcast_train.phases.transformer import FlowObjective
from lipcast_train.training.devices import Devices
from lipcast_train.training.loop import LoopSettings, Phase, Recipe, run_phase
from lipcast_train.training.state import Progress, read_progress

PHASE = "lora"
_CACHE_BYTES = 1 << 40
"""Encoded clips are kept, however many there are."""
_NUM_PROBES = 4
"""Windows that the loss is measured on before and after."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoraRequest:
    """What to train, on what, and where it goes."""

    model: Path
    """Folder of the checkpoint."""
    out: Path
    device: torch.device
    dtype: torch.dtype
    weights: Precision
    recipe: Recipe
    available_bytes: int
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    num_blocks: int | None = None
    """Of a window; None: as many as a clip of the model has."""
    seed: int = 0
    resume: bool = False
    loras: tuple[str, ...] = ()
    """Merged into the weights that stay."""
    data_identity: str = ""
    save_every_s: float = 300.0

    @property
    def folder(self) -> Path:
        """Folder of the state and of the encoded clips."""
        return self.out.with_name(f"{self.out.stem}-training")

    @property
    def state(self) -> Path:
        return self.folder / f"{PHASE}.safetensors"


@dataclass(frozen=True, slots=True)
class LoraResult:
    """What became of a training; the losses are those of the same windows before and after."""

    path: Path
    memory: TrainingMemory
    progress: Progress
    loss_before: float
    loss_after: float


def training_precision(weights: str | None, device: torch.device) -> tuple[Precision, torch.dtype]:
    """Return the format of the weights that stay, and the dtype that is computed in.

    That is bf16 on a GPU and float32 on a CPU, unless `weights` is one of the two. Raises UsageError.
    """
    dtype, asked = read_precision(weights, device)
    if device.type == "cpu" and weights != "bf16":
        dtype = torch.float32
    return asked or ("bf16" if dtype == torch.bfloat16 else "fp32"), dtype


def window_blocks(request: LoraRequest) -> int:
    """Return the blocks of a window, as asked for or as many as the model remembers."""
    config = read_configs(request.model).dit
    frames = config.infer_frames // VIDEO_FRAMES_PER_LATENT
    return request.num_blocks or max(1, frames // config.latents_per_block)


def training_shape(request: LoraRequest, source: ClipSource) -> TrainingShape:
    """Return the sizes of a training; nothing is loaded. Raises InputError where there are no clips."""
    models = read_configs(request.model)
    if not len(source):
        raise InputError(
            "there are no clips to train on; give a folder with videos that have sound"
        )
    geometry = _geometry(models, source.side)
    return TrainingShape(
        config=models.dit,
        geometry=geometry,
        weights=request.weights,
        adapters=request.adapters,
        num_blocks=window_blocks(request),
        batch=request.recipe.batch_size,
        number_bytes=request.dtype.itemsize,
        on_gpu=request.device.type == "cuda",
    )


def _geometry(models: Models, side: int) -> Geometry:
    frames = models.dit.infer_frames
    return Geometry.of(models.dit, models.vae, height=side, width=side, infer_frames=frames)


def train_lora(
    request: LoraRequest,
    source: ClipSource,
    *,
    report: Report = lambda _: None,
    progress: Callable[[str, Progress, int], None] = lambda *_: None,
) -> LoraResult:
    """Train adapters and write them; a training that was stopped goes on where its state was saved.

    Raises UsageError for a state of another training, InputError for clips that cannot be used,
    MemoryBudgetError where the training does not fit.
    """
    shape = training_shape(request, source)
    memory = plan_memory(shape)
    report("\n".join(("memory of this training:", *(f"  {line}" for line in memory.lines()))))
    check_memory(shape, request.available_bytes)
    identity = _identity(request, shape)
    _check_state(request, identity)
    clips, contexts = _encode(request, source, report)
    windows = _window_shape(shape, clips)
    dit, adapters = load_adapted(request)
    objective = FlowObjective(dit, contexts, ring_frames=shape.geometry.window)
    probe = _Probe(clips, windows, request)
    before = probe.loss(objective)
    phase = Phase(
        PHASE,
        request.recipe,
        objective,
        window_batches(
            clips, windows,
            size=request.recipe.batch_size, seed=request.seed, device=request.device,
        ),
        identity=identity,
    )  # fmt: skip
    settings = LoopSettings(request.folder, save_every_s=request.save_every_s, report=progress)
    done = run_phase(phase, Devices(request.device), settings)
    write_adapters(request, adapters, steps=done.step)
    return LoraResult(request.out, memory, done, before, probe.loss(objective))


def load_adapted(request: LoraRequest) -> tuple[DiT, dict[str, AdaptedLinear]]:
    """Load the transformer in the stored format, frozen, with new adapters."""
    files = find_checkpoint(request.model)
    config = read_configs(request.model).dit
    with without_memory():
        dit = DiT(config)
    weights = open_transformer(
        files, precision=request.weights, loras=request.loras, device=request.device
    )
    load_into(dit.eval(), weights, dtype=request.dtype, device=request.device)
    freeze(dit)
    return dit, add_adapters(dit, request.adapters, seed=request.seed)


def write_adapters(
    request: LoraRequest, adapters: Mapping[str, AdaptedLinear], *, steps: int
) -> None:
    """Write the adapters under the published names, in the precision of the model. Raises OutputError."""
    tensors = {
        name: parameter.detach().to(request.dtype) for name, parameter in adapter_tensors(adapters)
    }
    options = request.adapters
    metadata = {
        "format": "pt",
        "lora_alpha": f"{options.alpha:g}",
        "r": str(options.rank),
        "targets": ",".join(options.targets),
        "base_model": request.model.name,
        "steps": str(steps),
    }
    write_tensors(request.out, tensors, metadata=metadata)


class _Probe:
    """Windows and noise that are the same whenever they are asked for."""

    def __init__(self, clips: LatentCache, shape: WindowShape, request: LoraRequest) -> None:
        self._clips, self._shape, self._request = clips, shape, request

    @torch.no_grad()
    def loss(self, objective: FlowObjective) -> float:
        """Return the mean loss."""
        losses = [float(objective(self._batch(index))) for index in range(_NUM_PROBES)]
        return sum(losses) / len(losses)

    def _batch(self, index: int) -> WindowBatch:
        random = dice(self._request.seed, "probe", index)
        clip = self._clips.clip(index % len(self._clips))
        return collate([draw_window(clip, self._shape, random)], self._request.device)


def _encode(
    request: LoraRequest, source: ClipSource, report: Report
) -> tuple[LatentCache, dict[str, Tensor]]:
    """Encode every clip and every prompt that is not on the disk; nothing keeps the encoders."""
    bundle = load_bundle(
        request.model, device=request.device, dtype=torch.float32, networks=("vae", "speech")
    )
    config = bundle.dit.config
    repeats = config.motion_encoding == "repeat"
    cache = LatentCache(
        request.folder / "clips",
        ClipPool(source),
        bundle.vae,
        bundle.speech,
        identity=_digest(request.data_identity, bundle.files.vae, bundle.files.speech),
        device=request.device,
        max_bytes=_CACHE_BYTES,
        still_latents=STILL_LATENTS if repeats else config.motion_latents,
    )
    report(f"encoding {len(source)} clips; those that were encoded before are read")
    prompts = {"", *(cache.clip(index).prompt for index in range(len(source)))}
    cache.drop_encoders()
    files = bundle.files
    del bundle
    contexts = _embed(sorted(prompts), files)
    return cache, {prompt: context.to(request.device) for prompt, context in contexts.items()}


def _embed(prompts: Sequence[str], files: CheckpointFiles) -> dict[str, Tensor]:
    """Return the contexts of prompts; the encoder is loaded once, and only for new ones."""
    cache = PromptCache(cache_dir() / "prompts")
    identity = cache.text_identity(files)
    found = {prompt: cache.get(prompt, identity) for prompt in prompts}
    known = {prompt: context for prompt, context in found.items() if context is not None}
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        encoder = load_text_encoder(files)
        for prompt in missing:
            # A copy: the encoder's tensors are of inference mode, which no gradient may meet.
            known[prompt] = encoder.encode(prompt).clone()
            cache.put(PromptEmbedding(known[prompt], prompt, identity))
    return known


def _window_shape(shape: TrainingShape, clips: LatentCache) -> WindowShape:
    """Return the window that is cut out of every clip: of the shortest clip at most."""
    block = shape.geometry.latents_per_block
    shortest = min(_num_latents(clips.clip(index)) for index in range(len(clips)))
    blocks = min(shape.num_blocks, shortest // block)
    if not blocks:
        raise InputError(
            f"the shortest clip has {shortest * 4} frames; clips need at least {block * 4} "
            "(25 a second)"
        )
    return WindowShape(blocks * block, block, shape.config.motion_latents)


def _num_latents(clip: EncodedClip) -> int:
    return clip.latents_CFHW.shape[1]


def _identity(request: LoraRequest, shape: TrainingShape) -> str:
    """Return everything that the result depends on, as JSON."""
    files = find_checkpoint(request.model)
    settings = {
        "model": _digest(files.dit),
        "data": _digest(request.data_identity),
        "weights": request.weights,
        "size": f"{shape.geometry.width}*{shape.geometry.height}",
        "blocks": shape.num_blocks,
        "loras": list(request.loras),
        "seed": request.seed,
        "dtype": str(request.dtype),
        **asdict(request.adapters),
        **asdict(request.recipe),
    }
    return json.dumps(settings, sort_keys=True)


def _check_state(request: LoraRequest, identity: str) -> None:
    """Raise UsageError where the folder holds a state that is not to be continued."""
    found = read_progress(request.state)
    if not found.step:
        return
    if not request.resume:
        raise UsageError(
            f"{request.folder}: holds a training that has come to step {found.step}; give --resume to "
            "continue it, or delete the folder"
        )
    if found.identity != identity:
        raise UsageError(
            f"{request.folder}: holds a training with other settings "
            f"({', '.join(_differences(found.identity, identity))}); repeat its settings, or delete "
            "the folder"
        )


def _differences(stored: str, wanted: str) -> list[str]:
    before, now = json.loads(stored or "{}"), json.loads(wanted)
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def _digest(*parts: str | Path | None) -> str:
    """Return a short hash of texts and of files by their names, sizes and times."""
    words = [str(part) if not isinstance(part, Path) else stamp_of(part) for part in parts]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
