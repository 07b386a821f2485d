"""`lipcast pull`: download a named model, or the rest of it.

Input: the model's name and where to. Output: a folder that `--ckpt_dir` takes; its path, or one JSON
document.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from lipcast.cli.command import Option, Section, command, switch
from lipcast.cli.console import Console, print_json
from lipcast.cli.options import JSON_QUIET_DEBUG
from lipcast.cli.types import FOLDER
from lipcast.errors import UsageError
from lipcast.weights.checkpoint import model_name


@command(
    "pull",
    (
        click.Argument(["name"], help="Model: live-avatar-14b (also: 14b)."),
        Option(
            "dest", "Folder to download to.",
            section=Section.FILES, type=FOLDER,
            show_default="the cache, where models are found by name",
        ),
        Option(
            "revision", 'Another version, as "owner/name@commit"; once for each repository.',
            section=Section.FILES, metavar="OWNER/NAME@COMMIT", multiple=True,
            show_default="the commit of the first pull, else the newest",
        ),
        switch("offline", "Only check what is here, without the network.", section=Section.FILES),
        *JSON_QUIET_DEBUG,
    ),
    when_stopped="what has arrived is kept, and the same command continues",
    examples=(
        "lipcast pull live-avatar-14b",
        "lipcast pull live-avatar-14b --dest ckpt/live-avatar",
        "lipcast generate --ckpt_dir live-avatar-14b --image me.png --audio hello.wav",
    ),
)  # fmt: skip
def pull(
    console: Console, *, name: str, dest: Path | None, revision: tuple[str, ...], offline: bool
) -> None:
    """Download a model from the Hugging Face hub, about 47 GB.

    The space that is needed is compared with what is free before the first byte. After an interruption run
    the same command again: whole files are kept, and the version stays the same. HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE are honoured. Needs: pip install 'lipcast[hub]'.
    """
    from lipcast.weights import hub

    name = model_name(name)
    directory = hub.pull(
        name,
        dest=dest,
        revisions=_revisions(revision),
        offline=offline,
        progress=not (console.quiet or console.as_json),
    )
    status = hub.model_status(directory, name)
    document = {
        "status": "complete",
        "model": name,
        "directory": str(directory.resolve()),
        "bytes": status.num_bytes,
        "revisions": hub.pinned_revisions(directory),
        "free_bytes": shutil.disk_usage(directory).free,
    }
    if console.as_json:
        print_json(document)
    elif not console.quiet:
        click.echo(str(directory))
    console.log(f"{name} is complete, {status.num_bytes / 1e9:.1f} GB")


def _revisions(words: tuple[str, ...]) -> dict[str, str]:
    """Return {repository: revision} of words "owner/name@revision"; raises UsageError."""
    revisions = {}
    for word in words:
        repository, _, revision = word.partition("@")
        if not revision or "/" not in repository:
            raise UsageError(f'--revision: expected "owner/name@commit", got "{word}"')
        revisions[repository] = revision
    return revisions
