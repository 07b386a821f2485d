"""`lipcast encode-prompt`: a text becomes a file that stands for it where no text encoder fits.

Input: the text and a checkpoint that has the text encoder. Output: a small safetensors file for
`lipcast generate --prompt_embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.options import Positional
from lipcast.cli.validate import RawFlags

_SHARED = frozenset({"model", "json", "quiet", "verbose", "debug"})
TEXT = Positional("text", "What the picture shows and how the person behaves.")
ENCODE_FLAGS: tuple[Flag, ...] = (
    Flag(
        "output",
        Group.FILES,
        Kind.TEXT,
        "The file to write. An existing one is replaced.",
        default="prompt.safetensors",
        also=("-o",),
    ),
    *(flag for flag in FLAGS if flag.name in _SHARED),
)


def encode_prompt(given: Mapping[str, RawFlags]) -> None:
    """Encode a prompt on this machine, for one that is too small for the text encoder.

    Of the checkpoint only the text encoder and its tokenizer are needed here; where the video is
    made, they are not.

        lipcast encode-prompt "a calm man" --ckpt_dir ckpt/Wan2.2-S2V-14B -o prompt.safetensors

        lipcast generate --prompt_embedding prompt.safetensors --image me.png --audio hello.wav

    `lipcast generate` keeps the embeddings of its prompts by itself: the second video with the same
    prompt loads no text encoder.
    """
    from lipcast.env import cache_dir
    from lipcast.weights.checkpoint import TEXT_PARTS, checkpoint_dir, find_checkpoint

    talk = Console.begin(given)
    text, output = str(given["text"]), Path(str(given.get("output", "prompt.safetensors")))
    files = find_checkpoint(checkpoint_dir(str(given.get("model", "tiny"))), need=TEXT_PARTS)
    from lipcast.weights.bundle import embed_prompt
    from lipcast.weights.prompts import PromptCache, write_embedding

    embedding = embed_prompt(text, files, PromptCache(cache_dir() / "prompts"))
    write_embedding(output.expanduser(), embedding)
    num_tokens, width = embedding.context_TC.shape
    if talk.as_json:
        print_json(
            {
                "status": "finished",
                "output": str(output.expanduser().resolve()),
                "prompt": text,
                "tokens": num_tokens,
                "channels": width,
                "text_encoder": embedding.text_encoder,
            }
        )
    talk.note(f"{output}: {num_tokens} tokens of {width} numbers")
