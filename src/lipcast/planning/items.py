"""Names of the items that memory is planned by and counted under."""

from __future__ import annotations

# GPU memory
CONTEXT = "CUDA context"
WORKSPACES = "cuBLAS workspaces"
FRAGMENTATION = "allocator's fragmentation"
ROOT = "weights outside layers"
LAYERS = "weights of layers"
LAYER_SLOTS = "slots for streamed layers"
RINGS = "KV rings"
RING_SLOTS = "slots for streamed rings"
SINK = "sink"
CONDITIONS = "text and audio keys"
ACTIVATIONS = "activations of a tick"
GRAPHS = "CUDA graphs"
DECODER_WEIGHTS = "decoder weights"
DECODER_STATE = "decoder state"
DECODER_WORK = "decoder work"
VAE_WEIGHTS = "autoencoder weights"
ENCODER_WORK = "encoder work"
POSE_STATE = "pose encoder state"

# GPU or host memory
SPEECH_ENCODER = "speech encoder"
SPEECH_FEATURES = "speech features"
SPEECH_WORK = "speech encoder work"
TEXT_ENCODER = "text encoder"
TEXT_WORK = "text encoder work"

# Host memory
PROCESS = "process"
PINNED_LAYERS = "streamed layers, pinned"
PINNED_SHARDS = "shards of layers, pinned"
PINNED_RINGS = "KV rings, pinned"
STAGING = "staging for layers from disk"
PROMPT_WEIGHTS = "weights for the prompt"

PINNED = frozenset({PINNED_LAYERS, PINNED_SHARDS, PINNED_RINGS, STAGING, PROMPT_WEIGHTS, SINK})
"""Items of host memory whose pages are locked."""
SHARED = frozenset({
    CONTEXT, WORKSPACES, FRAGMENTATION, ROOT, LAYERS, LAYER_SLOTS, DECODER_WEIGHTS, VAE_WEIGHTS,
    SPEECH_ENCODER, SPEECH_WORK, TEXT_ENCODER, TEXT_WORK, PROCESS, PINNED_LAYERS, STAGING, PROMPT_WEIGHTS,
})  # fmt: skip
"""Items that all sessions of a model use together; every other item a session has for itself."""
