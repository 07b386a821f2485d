"""A face for an agent that runs elsewhere: joins a LiveKit room, and speaks what the agent sends.

    python integrations/livekit/worker.py --room my-room --image me.png --model tiny

Reads LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET. The agent sends its voice to the identity of this
worker with `DataStreamAudioOutput`, as `agent.py` does where LIPCAST_WORKER is that identity.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from livekit import api, rtc
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.utils import wait_for_participant
from livekit.agents.voice.avatar import DataStreamAudioReceiver

import lipcast
from lipcast.integrations.livekit import Avatar

PORTRAIT = Path(__file__).parents[2] / "examples" / "portrait_0.png"
AGENT = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--room", required=True)
    parser.add_argument("--url", default=os.environ.get("LIVEKIT_URL", "ws://localhost:7880"))
    parser.add_argument("--identity", default="lipcast-avatar")
    parser.add_argument("--model", default="tiny", help="a name, or the folder of a checkpoint")
    parser.add_argument("--image", default=PORTRAIT)
    parser.add_argument("--prompt", default="calm and friendly")
    return parser.parse_args(arguments)


def make_token(room: str, identity: str) -> str:
    """Return a token of an agent, so that the agent does not take the avatar for a user."""
    grants = api.VideoGrants(room_join=True, room=room, can_update_own_metadata=True)
    token = api.AccessToken().with_identity(identity).with_name("Lipcast")
    return token.with_kind("agent").with_grants(grants).to_jwt()


async def show(model: lipcast.Lipcast, room: rtc.Room, *, image: str | Path, prompt: str) -> None:
    """Be the face of the first agent that joins, until the room is left or the session fails."""
    live = await asyncio.to_thread(model.live, image=image, prompt=prompt)
    avatar = Avatar(live, room, DataStreamAudioReceiver(room))
    try:
        agent = await wait_for_participant(room, kind=AGENT)
        await room.local_participant.set_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: agent.identity})
        await avatar.start()
        await avatar.wait()
    finally:
        await avatar.aclose()


async def run(args: argparse.Namespace) -> None:
    """Load the model, join the room, and stay."""
    model = await asyncio.to_thread(lipcast.load, args.model)
    room = rtc.Room()
    await room.connect(args.url, make_token(args.room, args.identity))
    try:
        await show(model, room, image=args.image, prompt=args.prompt)
    finally:
        await room.disconnect()


if __name__ == "__main__":
    asyncio.run(run(parse(None)))
