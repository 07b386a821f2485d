"""Work that one step, one block and one decode of the true model ask of a GPU, counted without one.

Inputs: configs, a spec, the precisions of weights and rings. Output: `Work`. The real executor and the
real decoder run on fake CUDA tensors. All layers are alike, so a step is counted on models of one and
two layers, with one and two injectors, and extended to the layers of the config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lipcast.config.generate_options import GenerateOptions
from lipcast.config.gpu_options import KernelName
from lipcast.config.models import DiTConfig, VAEConfig
from lipcast.config.precision import KVPrecision, StoredPrecision
from lipcast.config.schedule import Unit
from lipcast.config.video_spec import VideoSpec, video_spec
from lipcast.engine.conditioning import PRIMING_LATENTS, ReferenceLatents
from lipcast.engine.executor import LaneExecutor, session_shape
from lipcast.lab.counting import OperatorCount, Work
from lipcast.lab.fake_cuda import DEVICE, HOPPER, fake_cuda
from lipcast.memory.arena import Arena, DeviceMaker
from lipcast.memory.copier import CudaCopier
from lipcast.memory.device_context import DeviceContext
from lipcast.memory.layer_params import layer_params
from lipcast.memory.session_memory import SessionMemory, SessionPlan
from lipcast.models.attention_backends import SDPA
from lipcast.models.dit import DiT, apply_kernels
from lipcast.models.kernels.fused import FusedKernels
from lipcast.models.kernels.plain import Kernels
from lipcast.models.kernels.vae import FusedConvKernels
from lipcast.models.vae import VideoVAE
from lipcast.models.vae_channels_last import to_channels_last
from lipcast.weights.load import without_memory
from lipcast.weights.quant import kept_because
from lipcast.weights.quant_linear import replace_linears, use_direct_products
from lipcast.weights.schemes import PLAIN_DTYPES, SCHEMES
from lipcast.weights.source import TensorInfo

PORTRAIT = 1280, 720
"""Height and width of a picture that is generated at 704 x 384."""
STEADY_BLOCK = 8
"""A block whose ring is full, for windows of up to 24 latent frames."""


@dataclass(frozen=True, slots=True)
class StepCase:
    """How weights and rings are stored, and how many lanes one tick carries."""

    precision: StoredPrecision = "fp8"
    kv_precision: KVPrecision | None = None
    """None: as the model computes (bf16)."""
    num_lanes: int = 1
    direct: bool = True
    """Whether fp8 and NVFP4 weights are multiplied as they are; otherwise they are dequantised first."""
    kernels: KernelName = "triton"
    in_place: bool | None = None
    """Whether the fused kernel attends to ring and sink; None: as on Hopper."""
    merges: bool = True
    """Whether cuDNN attends to the parts of a plain ring and a sink where they lie; else they are joined."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """One tick, by what it grows with."""

    base: Work
    per_layer: Work
    per_injector: Work

    def total(self, config: DiTConfig) -> Work:
        """Return the work of a tick of a model with the layers of `config`."""
        injectors = len(config.audio_inject_layers)
        return self.base + self.per_layer * config.num_layers + self.per_injector * injectors


def default_spec(
    config: DiTConfig,
    *,
    size: str = "704*384",
    infer_frames: int = 48,
    vae: VAEConfig | None = None,
) -> VideoSpec:
    """Return the sizes and the order of a video of a phone's portrait."""
    options = GenerateOptions(size=size, infer_frames=infer_frames)
    height, width = PORTRAIT
    return video_spec(options, config, vae or VAEConfig(), height=height, width=width)


def count_step(
    config: DiTConfig, case: StepCase, *, size: str = "704*384", infer_frames: int = 48
) -> StepWork:
    """Count one tick of a steady video, extended from models of one and two layers."""

    def tick_of(num_layers: int, num_injectors: int) -> Work:
        small = replace(
            config, num_layers=num_layers, audio_inject_layers=tuple(range(num_injectors))
        )
        spec = default_spec(small, size=size, infer_frames=infer_frames)
        return count_tick(small, spec, case).total()

    one, two, injected = tick_of(1, 1), tick_of(2, 1), tick_of(2, 2)
    per_layer, per_injector = two - one, injected - two
    return StepWork(one - per_layer - per_injector, per_layer, per_injector)


def count_tick(config: DiTConfig, spec: VideoSpec, case: StepCase) -> OperatorCount:
    """Count one tick of a steady video with every layer of the model."""
    counted = OperatorCount()
    with fake_cuda(), steady_executor(config, spec, case) as (executor, tick), counted:
        executor.run(tick)
    return counted


def count_block_start(config: DiTConfig, spec: VideoSpec, case: StepCase) -> OperatorCount:
    """Count what is done once per block: positions, audio tokens, the placed reference."""
    counted = OperatorCount()
    with fake_cuda(), steady_executor(config, spec, case) as (executor, _), counted:
        executor.start(STEADY_BLOCK + spec.order.num_steps, fake_features(config))
    return counted


@contextmanager
def steady_executor(
    config: DiTConfig, spec: VideoSpec, case: StepCase
) -> Iterator[tuple[LaneExecutor, tuple[Unit, ...]]]:
    """Give an executor whose rings are full, and a tick that it is ready to run. Needs `fake_cuda`."""
    spec = replace(spec, max_lanes=case.num_lanes)
    dit = fake_dit(config, case.precision, direct=case.direct)
    resident = SessionPlan.resident(config.num_layers)
    apply_kernels(dit, fake_kernels(case))
    plan = replace(resident, kv_precision=case.kv_precision)
    memory = SessionMemory(dit, session_shape(spec), fake_device_context(), plan)
    context = torch.empty(120, config.text_dim, device=DEVICE)
    executor = LaneExecutor(dit, spec, fake_reference(spec, config), context, memory=memory)
    # The tick before it places the sink for blocks that are under way, as in a running video.
    for tick in _ticks_before(case.num_lanes):
        _start_new(executor, tick, config)
        executor.run(tick)
    last = _wavefront(case.num_lanes - 1) if case.num_lanes > 1 else (Unit(STEADY_BLOCK, 1),)
    _start_new(executor, last, config)
    yield executor, last
    executor.release()


def fake_kernels(case: StepCase) -> Kernels:
    """Return the operations between matrix products, for the fake device."""
    if case.kernels != "triton":
        return Kernels()
    attention = None if case.precision == "fp32" else SDPA
    return FusedKernels(HOPPER, in_place=case.in_place, attention=attention, merges=case.merges)


def _ticks_before(num_lanes: int) -> list[tuple[Unit, ...]]:
    return [_wavefront(tick) for tick in range(max(1, num_lanes - 1))]


def _wavefront(tick: int) -> tuple[Unit, ...]:
    """Return the units of a wavefront; the earliest block is the furthest."""
    return tuple(Unit(STEADY_BLOCK + lane, tick - lane) for lane in range(tick + 1))


def _start_new(executor: LaneExecutor, tick: tuple[Unit, ...], config: DiTConfig) -> None:
    for unit in tick:
        if unit.step == 0:
            executor.start(unit.block, fake_features(config))


def fake_dit(config: DiTConfig, precision: StoredPrecision, *, direct: bool = True) -> DiT:
    """Return the transformer with weights of a precision, on the fake device."""
    dtype = PLAIN_DTYPES.get(precision, torch.bfloat16)
    with without_memory():
        dit = DiT(config)
        if precision in SCHEMES:
            scheme = SCHEMES[precision]
            layers = [(name, scheme) for name in quantised_names(dit)]
            replace_linears(dit, layers, dtype=dtype)
    put_on_device(dit, dtype)
    for pack in layer_params(dit, dtype).values():  # tensors lie in memory as loading places them
        buffer = torch.empty(pack.num_bytes, dtype=torch.uint8, device=DEVICE)
        pack.attach(pack.layout.views(buffer))
    use_direct_products(dit, enabled=direct)
    return dit


def quantised_names(dit: DiT) -> list[str]:
    """Return the names of the linear layers whose weights are stored quantised."""
    linears = (pair for pair in dit.named_modules() if isinstance(pair[1], nn.Linear))
    return [
        name
        for name, linear in linears
        if kept_because(_info(f"{name}.weight", linear.weight)) is None
    ]


def _info(name: str, weight: Tensor) -> TensorInfo:
    return TensorInfo(name, tuple(weight.shape), weight.dtype)


def put_on_device(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module without memory uninitialised tensors on the fake device, parameters in `dtype`."""
    module.eval().requires_grad_(False)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fresh = torch.empty_like(parameter, dtype=dtype, device=DEVICE)
                part._parameters[name] = nn.Parameter(fresh, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=DEVICE)


def fake_device_context() -> DeviceContext:
    """Return the fake device, its host memory, and copies that are counted as copies."""
    host = Arena("host memory", DeviceMaker(torch.device("cpu")))
    return DeviceContext(
        DEVICE, Arena("fake device", DeviceMaker(DEVICE)), host, CudaCopier(DEVICE)
    )


def fake_reference(spec: VideoSpec, config: DiTConfig) -> ReferenceLatents:
    """Return reference and motion latents of a portrait."""
    geometry = spec.geometry
    still_CFHW = torch.empty(
        geometry.latent_channels, config.motion_latents,
        geometry.latent_height, geometry.latent_width, device=DEVICE,
    )  # fmt: skip
    return ReferenceLatents(still_CFHW[:, :1], still_CFHW, still_CFHW[:, :PRIMING_LATENTS])


def fake_features(config: DiTConfig) -> Tensor:
    """Return speech features of one block, in host memory as the sound's timeline gives them."""
    return torch.empty(config.num_audio_layers, config.audio_dim, 12)


@contextmanager
def fake_vae(config: VAEConfig, kernels: KernelName = "triton") -> Iterator[VideoVAE]:
    """Give the autoencoder in bf16 on the fake device."""
    with fake_cuda():
        with without_memory():
            vae = VideoVAE(config)
        put_on_device(vae, torch.bfloat16)
        with torch.inference_mode():
            if kernels == "triton":
                yield to_channels_last(vae, FusedConvKernels(torch.bfloat16))
            else:
                yield vae


def count_vae(
    config: VAEConfig, spec: VideoSpec, *, still_frames: int, kernels: KernelName = "triton"
) -> Mapping[str, Work]:
    """Count decoding one block of a running video, warming its caches up, and encoding a portrait."""
    geometry = spec.geometry
    size = geometry.latent_height, geometry.latent_width
    channels, block = geometry.latent_channels, geometry.latents_per_block
    counts = {name: OperatorCount() for name in ("decode_block", "prime", "encode_still")}
    with fake_vae(config, kernels) as vae:
        state = vae.new_decoder_state()
        with counts["prime"]:
            vae.prime(torch.empty(1, channels, 7, *size, device=DEVICE), state)
        latents = torch.empty(1, channels, block, *size, device=DEVICE)
        vae.decode_chunk(latents, state)
        with counts["decode_block"]:
            vae.decode_chunk(latents, state)
        image = torch.empty(1, 3, geometry.height, geometry.width, device=DEVICE)
        with counts["encode_still"]:
            vae.encode_still(image, still_frames)
    return {name: counted.total() for name, counted in counts.items()}
