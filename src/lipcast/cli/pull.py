"""`lipcast pull`: download a named model, or the rest of it.

Input: the model's name and where to. Output: a folder that `--ckpt_dir` takes; its path, or one JSON
document.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import typer

from lipcast.cli.console import Console, print_json
from lipcast.cli.flag import Flag, Group, Kind
from lipcast.cli.flag_table import FLAGS
from lipcast.cli.options import Positional
from lipcast.cli.validate import RawFlags
from lipcast.errors import UsageError

_SHARED = frozenset({"json", "quiet", "debug"})
NAME = Positional("name", "The model: live-avatar-14b.")
PULL_FLAGS: tuple[Flag, ...] = (
    Flag(
        "dest",
        Group.FILES,
        Kind.TEXT,
        "The folder to download to.",
        default="the cache, where models are found by name",
    ),
    Flag(
        "revision",
        Group.FILES,
        Kind.TEXTS,
        'Another version, as "owner/name@commit"; once for each repository.',
        default="the commit of the first pull, else the newest",
    ),
    Flag("offline", Group.FILES, Kind.SWITCH, "Only check what is here; no network."),
    *(flag for flag in FLAGS if flag.name in _SHARED),
)


def pull(given: Mapping[str, RawFlags]) -> None:
    """Download a model: the published files, about 47 GB, from the Hugging Face hub.

    What is needed and what is free on the disk is compared before the first byte. Run the same
    command again after an interruption: whole files are kept, and the version stays the same.
    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured. Needs: pip install 'lipcast[hub]'.

        lipcast pull live-avatar-14b

        lipcast pull live-avatar-14b --dest ckpt/live-avatar

    Then: lipcast generate --ckpt_dir live-avatar-14b --image me.png --audio hello.wav
    """
    from lipcast.weights import hub

    talk = Console.begin(given)
    name = str(given["name"])
    dest = Path(str(given["dest"])).expanduser() if "dest" in given else None
    directory = hub.pull(
        name,
        dest=dest,
        revisions=_revisions(str(given.get("revision", ""))),
        offline=bool(given.get("offline")),
        progress=not (talk.quiet or talk.as_json),
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
    if talk.as_json:
        print_json(document)
    elif not talk.quiet:
        typer.echo(str(directory))
    talk.note(f"{name} is complete, {status.num_bytes / 1e9:.1f} GB")


def _revisions(lines: str) -> dict[str, str]:
    """{repository: revision} of lines "owner/name@revision"; raises UsageError."""
    revisions = {}
    for line in lines.splitlines():
        repository, _, revision = line.partition("@")
        if not revision or "/" not in repository:
            raise UsageError(f'--revision: expected "owner/name@commit", got "{line}"')
        revisions[repository] = revision
    return revisions
