"""Lipcast in ComfyUI: copy this folder to ComfyUI/custom_nodes/lipcast, and install its requirements."""

from lipcast.integrations.comfyui import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
