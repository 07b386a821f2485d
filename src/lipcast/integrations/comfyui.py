"""Nodes for ComfyUI (V3 schema): load a model; a picture, a sound and a prompt become a video.

Imported inside ComfyUI only, by the folder integrations/comfyui. Its types: IMAGE is a float tensor
[num_pictures, height, width, 3] of 0..1, AUDIO a dict of `waveform` [1, channels, samples] and `sample_rate`,
VIDEO an object that ComfyUI makes of a file.
"""

from __future__ import annotations

import gc
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as comfy_memory
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, InputImpl, io

import lipcast
from lipcast.config.generate_options import CROPS, MAX_SEED
from lipcast.config.gpu_options import KERNEL_CHOICES
from lipcast.config.precision import KV_PRECISIONS, PRECISIONS
from lipcast.integrations.comfyui_values import to_batch, to_portrait, to_sound
from lipcast.media.audio import open_audio

if TYPE_CHECKING:
    from lipcast.engine.session import Session

AUTO = "auto"
Model = io.Custom("LIPCAST_MODEL")
TIPS = {
    "model": "A name, such as tiny or live-avatar-14b, or the folder of a checkpoint.",
    "device": "cpu, cuda or cuda:1; empty takes the first GPU.",
    "precision": "Precision of the transformer's weights; auto computes in bf16 where the device has it.",
    "vram": "Budget of GPU memory, such as 12GB; empty takes what is free.",
    "ram": "Budget of pinned host memory, such as 32GB; empty takes what is free.",
    "offload_model": "Stream all weights from host memory.",
    "offload_kv_cache": "Stream the KV cache from host memory.",
    "kv_precision": "Precision of the KV cache.",
    "fallback": "Fallbacks to take in order when memory runs out; none allows none, empty the default ones.",
    "allow_degrade": "Allow fallbacks that change the video: a shorter window, fewer steps, a smaller size.",
    "kernels": "Fused kernels (triton), or operators of PyTorch (plain).",
    "loras": "One adapter a line: a file or folder, and its strength after a colon.",
    "decoder": "File of a TAEHV decoder, which is faster and less exact; empty takes the autoencoder.",
    "prompt": "How the person looks, moves and feels.",
    "seed": "The same seed makes the same video.",
    "size": "Area, such as 704*384; the portrait's aspect decides the sides. Empty: the model decides.",
    "infer_frames": "Attention window in frames, a multiple of 4; 0: as the model was trained.",
    "sample_steps": "Denoising steps; 0: as the model was trained.",
    "num_clip": "Most clips of infer_frames frames; 0: until the sound ends.",
    "crop": "center takes the whole picture, face a square around its largest face.",
    "clean_audio": "Follow the loudest channel where channels cancel, and ignore noise without a voice.",
    "all_images": "Give out all pictures; otherwise the last one only, which saves memory.",
}


class LoadModel(io.ComfyNode):
    """Loads a model once; ComfyUI keeps it until an input changes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipcastLoadModel",
            display_name="Lipcast: load model",
            category="lipcast",
            description="Loads a Live Avatar model within a budget of memory.",
            inputs=[
                io.String.Input("model", default="tiny", tooltip=TIPS["model"]),
                io.String.Input("device", default="", tooltip=TIPS["device"]),
                io.Combo.Input("precision", options=[AUTO, *PRECISIONS], tooltip=TIPS["precision"]),
                io.String.Input("vram", default="", tooltip=TIPS["vram"]),
                io.String.Input("ram", default="", tooltip=TIPS["ram"]),
                io.Boolean.Input("offload_model", default=False, tooltip=TIPS["offload_model"]),
                io.Boolean.Input(
                    "offload_kv_cache", default=False, tooltip=TIPS["offload_kv_cache"]
                ),
                io.Combo.Input(
                    "kv_precision", options=[AUTO, *KV_PRECISIONS], tooltip=TIPS["kv_precision"]
                ),
                io.String.Input("fallback", default="", tooltip=TIPS["fallback"]),
                io.Boolean.Input("allow_degrade", default=False, tooltip=TIPS["allow_degrade"]),
                io.Combo.Input("kernels", options=list(KERNEL_CHOICES), tooltip=TIPS["kernels"]),
                io.String.Input("loras", multiline=True, default="", tooltip=TIPS["loras"]),
                io.String.Input("decoder", default="", tooltip=TIPS["decoder"]),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, *, model: str, loras: str, **options: Any) -> io.NodeOutput:
        """Make room on the GPU, and load; raises LipcastError with what to do where it does not fit."""
        comfy_memory.unload_all_models()
        gc.collect()
        comfy_memory.soft_empty_cache()
        adapters = [line.strip() for line in loras.splitlines() if line.strip()]
        loaded = lipcast.load(
            model.strip(), loras=adapters, **_given(options, left_open=("", AUTO))
        )
        return io.NodeOutput(loaded)


class Talk(io.ComfyNode):
    """Makes a video of a picture and a sound."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipcastTalk",
            display_name="Lipcast: talking video",
            category="lipcast",
            description="A portrait says what is in the sound. The sound decides the length.",
            inputs=[
                Model.Input("model", tooltip="What “Lipcast: load model” gives."),
                io.Image.Input("image", tooltip="The portrait; of a batch, the first picture."),
                io.Audio.Input("audio", tooltip="The voice."),
                io.String.Input("prompt", multiline=True, default="", tooltip=TIPS["prompt"]),
                io.Int.Input(
                    "seed",
                    default=420,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip=TIPS["seed"],
                ),
                io.String.Input("size", default="", tooltip=TIPS["size"]),
                io.Int.Input(
                    "infer_frames", default=0, min=0, max=960, step=4, tooltip=TIPS["infer_frames"]
                ),
                io.Int.Input("sample_steps", default=0, min=0, max=8, tooltip=TIPS["sample_steps"]),
                io.Int.Input("num_clip", default=0, min=0, max=100_000, tooltip=TIPS["num_clip"]),
                io.Combo.Input("crop", options=list(CROPS), tooltip=TIPS["crop"]),
                io.Boolean.Input("clean_audio", default=True, tooltip=TIPS["clean_audio"]),
                io.Boolean.Input("all_images", default=True, tooltip=TIPS["all_images"]),
            ],
            outputs=[io.Video.Output(display_name="video"), io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(
        cls,
        *,
        model: lipcast.Lipcast,
        image: torch.Tensor,
        audio: dict[str, Any],
        prompt: str,
        seed: int,
        clean_audio: bool,
        all_images: bool,
        **options: Any,
    ) -> io.NodeOutput:
        """Write the video block by block; raises LipcastError, or ComfyUI's own where the user interrupts."""
        session = model.stream(
            image=to_portrait(image),
            audio=open_audio(to_sound(audio), clean=clean_audio),
            prompt=prompt,
            seed=seed,
            clean_audio=clean_audio,
            **_given(options, left_open=("", 0)),
        )
        path = _new_file()
        with session:
            blocks = lipcast.save_blocks(_with_progress(session), path)
            pictures = deque(
                (block.frames if all_images else block.frames[-1:] for block in blocks),
                maxlen=None if all_images else 1,
            )
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), to_batch(pictures))


def _given(options: Mapping[str, Any], *, left_open: tuple[object, ...]) -> dict[str, Any]:
    """Return the options without those that have a value which leaves the choice to the library."""
    return {name: value for name, value in options.items() if value not in left_open}


def _new_file() -> Path:
    """Return a path for a video in ComfyUI's folder of temporary files, which it empties at its start."""
    parent = Path(folder_paths.get_temp_directory())
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="lipcast-", dir=parent)) / "video.mp4"


def _with_progress(session: Session) -> Iterator[lipcast.FrameBlock]:
    """Pass the blocks on; show how many are done, and end when the user interrupts."""
    bar = comfy.utils.ProgressBar(session.num_blocks or 1)
    for block in session:
        comfy_memory.throw_exception_if_processing_interrupted()
        bar.update(1)
        yield block


class LipcastExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, Talk]


async def comfy_entrypoint() -> LipcastExtension:
    """Return the nodes; called by ComfyUI when it loads the folder."""
    return LipcastExtension()
