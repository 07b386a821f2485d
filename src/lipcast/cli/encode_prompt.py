"""`lipcast encode-prompt`: encode a prompt for a machine that has no room for the text encoder.

Input: the text and a checkpoint that has the text encoder. Output: a small safetensors file for
`lipcast generate --prompt_embedding`.
"""

from __future__ import annotations

from pathlib import Path

import click

from lipcast.cli.command import Option, Section, command
from lipcast.cli.console import Console, print_json
from lipcast.cli.options import CONSOLE, MODEL
from lipcast.cli.request import DEFAULT_MODEL
from lipcast.cli.types import FILE, TEXT


@command(
    "encode-prompt",
    (
        click.Argument(["text"], type=TEXT, help="What the picture shows and how the person behaves."),
        Option(
            "output", "File to write. An existing file is replaced.",
            section=Section.FILES, also=("-o",), type=FILE, default="prompt.safetensors",
            show_default=True,
        ),
        MODEL,
        *CONSOLE,
    ),
    examples=(
        'lipcast encode-prompt "a calm man" --ckpt_dir ckpt/Wan2.2-S2V-14B -o prompt.safetensors',
        "lipcast generate --prompt_embedding prompt.safetensors --image me.png --audio hello.wav",
    ),
)  # fmt: skip
def encode_prompt(console: Console, *, text: str, output: Path, model: str | None) -> None:
    """Encode a prompt for a machine without text encoder.

    Only the text encoder and its tokenizer are needed here, and neither where the video is made.
    `lipcast generate` caches the embeddings of its prompts: the second video with the same prompt loads no
    text encoder.
    """
    from lipcast.env import cache_dir
    from lipcast.weights.checkpoint import TEXT_PARTS, checkpoint_dir, find_checkpoint

    files = find_checkpoint(checkpoint_dir(model or DEFAULT_MODEL), need=TEXT_PARTS)
    from lipcast.weights.bundle import embed_prompt
    from lipcast.weights.prompts import PromptCache, write_embedding

    embedding = embed_prompt(text, files, PromptCache(cache_dir() / "prompts"))
    write_embedding(output, embedding)
    num_tokens, num_channels = embedding.context_TC.shape
    if console.as_json:
        print_json({
            "status": "finished",
            "output": str(output.resolve()),
            "prompt": text,
            "tokens": num_tokens,
            "channels": num_channels,
            "text_encoder": embedding.text_encoder,
        })  # fmt: skip
    console.log(f"{output}: {num_tokens} tokens of {num_channels} channels")
