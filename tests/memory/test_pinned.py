"""Host memory is pinned for every GPU, unpinned again, and a refusal is an ordinary out-of-memory error."""

from __future__ import annotations

import gc

import pytest
import torch
from fake_cuda_runtime import ILLEGAL_ADDRESS, REFUSED, FakeCuda

from lipcast.memory.arena import Arena
from lipcast.memory.device import with_index
from lipcast.memory.oom import is_out_of_memory
from lipcast.memory.pinned import PinnedMaker
from lipcast.memory.probe import link_bytes_per_s

GPU_1 = torch.device("cuda:1")
PORTABLE = 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_pages_are_pinned_for_every_gpu_from_the_right_device(cuda: FakeCuda) -> None:
    arena = Arena("pinned host memory", PinnedMaker(GPU_1))
    buffer = arena.allocate("rings", 5000)
    assert buffer.shape == (5000,) and cuda.pinned == {buffer.data_ptr(): (5000, PORTABLE, 1)}
    buffer.fill_(7)
    arena.release(buffer)
    assert not cuda.pinned and cuda.current == 0


def test_an_empty_buffer_is_pinned_and_unpinned(cuda: FakeCuda) -> None:
    maker = PinnedMaker(GPU_1)
    buffer = maker.make(0)
    assert buffer.numel() == 0 and len(cuda.pinned) == 1
    maker.drop(buffer)
    assert not cuda.pinned


def test_a_refusal_does_not_reach_the_next_launch(cuda: FakeCuda) -> None:
    arena = Arena("pinned host memory", PinnedMaker(GPU_1))
    cuda.refusal = REFUSED
    with pytest.raises(torch.OutOfMemoryError, match=r"rings.*refused to pin.*ulimit -l") as caught:
        arena.allocate("rings", 5000)
    assert is_out_of_memory(caught.value) and arena.used_bytes == 0
    cuda.launch()
    cuda.refusal = 0
    assert arena.allocate("rings", 5000).numel() == 5000


def test_a_broken_gpu_is_not_taken_for_a_refusal(cuda: FakeCuda) -> None:
    """cudaHostRegister also returns errors of earlier kernels."""
    maker = PinnedMaker(GPU_1)
    cuda.refusal, cuda.is_broken = ILLEGAL_ADDRESS, True
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        maker.make(5000)


def test_a_dropped_maker_unpins_what_is_left(cuda: FakeCuda) -> None:
    arena = Arena("pinned host memory", PinnedMaker(GPU_1))
    buffers = [arena.allocate("rings", 5000) for _ in range(2)]
    assert len(cuda.pinned) == len(buffers)
    del arena
    gc.collect()
    assert not cuda.pinned


def test_the_link_is_measured_on_the_device_asked_for(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipcast.memory.probe._COPY_BYTES", 4000)
    assert link_bytes_per_s(GPU_1) == 4000 / 0.002
    assert cuda.recorded_on and set(cuda.recorded_on) == {1}
    assert not cuda.pinned and cuda.current == 0


def test_the_doctor_reports_that_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcast.lab import doctor

    measured: list[torch.device] = []

    def link(device: torch.device) -> float:
        measured.append(device)
        return 25e9

    monkeypatch.setattr("lipcast.memory.probe.link_bytes_per_s", link)
    monkeypatch.setattr("lipcast.weights.fp8.has_fp8_matmul", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**36, 2**36))
    found = list(doctor._gpu(torch, 1))
    assert measured == [GPU_1]
    assert found[-1].found == "25.0 GB/s from pinned host memory, measured"


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_a_device_gets_its_index(cuda: FakeCuda, device: str, expected: str) -> None:
    cuda.current = 1
    assert str(with_index(torch.device(device))) == expected
