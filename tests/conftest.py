"""What many tests share: the embedded model, loaded once, short sounds, a profile of hypothesis."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import lipcast
from lipcast.models.vae_channels_last import to_channels_last
from lipcast.models.vae_kernels import best_kernels
from lipcast.models.vae_tiny import TinyDecoder
from profiles import PROFILE
from sounds import EXAMPLES, write_wav

settings.load_profile(PROFILE)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own: what an earlier run or the user left there proves nothing."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPCAST_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def signals() -> Iterator[None]:
    """Heed what `nohup` and a shell's `&` have ignored: the programs that tests start would inherit it."""
    names = ("SIGINT", "SIGQUIT", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:  # a handler in Python is the default again in what is started
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def loaded(home: Path) -> lipcast.Lipcast:
    """The embedded model on the CPU: transformer in float32, the fast autoencoder."""
    model = lipcast.load("tiny", device="cpu", precision="fp32")
    model.bundle.vae = to_channels_last(model.bundle.vae, best_kernels())
    return model


@pytest.fixture(scope="session")
def tiny(loaded: lipcast.Lipcast) -> lipcast.Lipcast:
    return loaded


@pytest.fixture(scope="session")
def quick(loaded: lipcast.Lipcast) -> lipcast.Lipcast:
    """The embedded model with a decoder of random weights, for tests that compare pictures with each other.

    The embedded decoder takes 85 % of the time of a small video, this one 20 %.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = TinyDecoder((32, 16, 16, 8)).eval().requires_grad_(False)
    return lipcast.Lipcast(replace(loaded.bundle, tiny_decoder=decoder))


@pytest.fixture
def portrait() -> Path:
    return EXAMPLES / "portrait_0.png"


@pytest.fixture
def sound(tmp_path: Path) -> Callable[[float], Path]:
    """A wav of syllables, so many seconds long, 16 kHz mono."""

    def make(seconds: float, rate: int = 16_000) -> Path:
        return write_wav(tmp_path / f"sound_{seconds}_{rate}.wav", seconds, rate)

    return make
