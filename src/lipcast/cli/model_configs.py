"""The configurations of a model by name or folder, for verbs that load no weights."""

from __future__ import annotations

from lipcast.errors import CheckpointError
from lipcast.planning.plan import Models
from lipcast.weights.checkpoint import checkpoint_dir
from lipcast.weights.configs import models_in

PUBLISHED = "14b"


def read_configs(model: str) -> Models:
    """ "tiny", "14b" (the published model, which need not be there), a pulled model, or a folder."""
    if model == PUBLISHED:
        return Models()
    try:
        folder = checkpoint_dir(model)
    except CheckpointError as error:
        hint = f"{PUBLISHED} is the published model without its files"
        raise CheckpointError(f"{error}; {hint}") from error
    return models_in(folder)
