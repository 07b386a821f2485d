"""The check `right`: does every CUDA path compute what its CPU twin computes?"""

from __future__ import annotations

from gpu import right_kernels, right_numbers, right_videos
from gpu.runner import Part

PARTS = (
    Part("environment", right_numbers.environment, 40),
    Part("fp8", right_numbers.fp8_rows, 60),
    Part("fp4", right_numbers.fp4_rows, 40),
    Part("stored", right_numbers.stored_forms, 40),
    Part("attention", right_numbers.attention, 40),
    Part("kernels", right_kernels.kernels, 90),
    Part("vae", right_numbers.autoencoder, 60),
    Part("precisions", right_videos.precisions, 120),
    Part("placements", right_videos.placements, 100),
    Part("graphs", right_videos.graphs, 60),
    Part("races", right_videos.races, 80),
    Part("sessions", right_videos.sessions, 60),
    Part("full", right_videos.out_of_memory, 120),
    Part("sanitizer", right_videos.sanitizer, 150),
)
