"""Trains the smallest preset in the folder that is named; every process that starts it has a share."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from faces import DrawnFaces
from micro import micro

from lipcast_train.run import train_all
from lipcast_train.training.devices import open_devices
from lipcast_train.training.loop import LoopSettings

if __name__ == "__main__":
    with open_devices(torch.device("cpu")) as devices:
        train_all(micro(), DrawnFaces(2), devices, LoopSettings(Path(sys.argv[1])))
