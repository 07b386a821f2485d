"""The tokens of several characters, as the public implementation finds them (case 05c)."""

from __future__ import annotations

import torch

from lipcast.engine.conditioning import character_tokens


def test_masks_of_the_two_actors_case(golden):
    case = golden("case05c")
    masks = torch.stack([
        torch.stack([case[f"inputs/actor_mask_png/{actor}/{frame}"] > 0 for frame in range(5)])
        for actor in range(2)
    ])  # fmt: skip
    expected = case["mid/actor_mask_processed"][..., 0]
    assert torch.equal(character_tokens(masks, expected.shape[1], expected.shape[2:]), expected)


def test_boxes_that_move_apart():
    """Values of the same case, from its boxes: the first actor's moves, the second one's is still here."""
    masks = torch.zeros(2, 5, 64, 128)
    for frame in range(5):
        masks[0, frame, 8:40, 8 * (frame + 1) : 8 * (frame + 1) + 32] = 1
    masks[1, :, 16:56, 64:112] = 1
    first, second = character_tokens(masks, 6, (4, 8))
    assert first[0].int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 4
    assert second[0].int().tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]] * 3 + [[1] * 8]
