"""An agent with a face: LiveKit listens, thinks and speaks, Lipcast shows who speaks.

    python integrations/livekit/agent.py dev

Reads LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET. The face is made in the process of the job, with
the model LIPCAST_MODEL (tiny) and the portrait LIPCAST_IMAGE; where LIPCAST_WORKER is set to the identity of
a running `worker.py`, it is made there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from livekit import rtc
from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobProcess, cli
from livekit.agents.voice.avatar import DataStreamAudioOutput, QueueAudioOutput
from livekit.agents.voice.io import AudioOutput
from livekit.agents.voice.room_io import RoomOptions

import lipcast
from lipcast.integrations.livekit import Avatar

PORTRAIT = Path(__file__).parents[2] / "examples" / "portrait_0.png"
VOICE_RATE = 24_000


def prepare(process: JobProcess) -> None:
    """Load the model before the first job comes."""
    if "LIPCAST_WORKER" not in os.environ:
        process.userdata["model"] = lipcast.load(os.environ.get("LIPCAST_MODEL", "tiny"))


server = AgentServer(setup_fnc=prepare, num_idle_processes=1)


def make_session() -> AgentSession:
    """Return a session on LiveKit's inference; any plugins of LiveKit take the place of these names."""
    return AgentSession(
        stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3",
        # An avatar cannot pause in the middle of a sentence.
        turn_handling={"interruption": {"resume_false_interruption": False}},
    )  # fmt: skip


async def show(model: lipcast.Lipcast, room: rtc.Room) -> tuple[Avatar, AudioOutput]:
    """Start an avatar in this process; returns it, and the output to give the agent's voice to."""
    image = os.environ.get("LIPCAST_IMAGE", PORTRAIT)
    live = await asyncio.to_thread(model.live, image=image, prompt="calm and friendly")
    voice = QueueAudioOutput(sample_rate=VOICE_RATE, wait_playback_start=True)
    avatar = Avatar(live, room, voice)
    await avatar.start()
    return avatar, voice


async def watch(avatar: Avatar, context: JobContext) -> None:
    """End the job with its avatar."""
    try:
        await avatar.wait()
    finally:
        context.shutdown("the avatar has ended")


@server.rtc_session()
async def answer(context: JobContext) -> None:
    """Talk to whoever is in the room."""
    session = make_session()
    await context.connect()
    if worker := os.environ.get("LIPCAST_WORKER"):
        session.output.audio = DataStreamAudioOutput(
            context.room,
            destination_identity=worker,
            sample_rate=VOICE_RATE,
            wait_playback_start=True,
        )
    else:
        avatar, session.output.audio = await show(context.proc.userdata["model"], context.room)
        watching = asyncio.create_task(watch(avatar, context))
        context.add_shutdown_callback(avatar.aclose)
        watching.add_done_callback(lambda task: task.cancelled() or task.exception())
    await session.start(
        Agent(instructions="You are a friendly assistant. Answer in one or two sentences."),
        room=context.room,
        room_options=RoomOptions(audio_output=False),
    )
    session.generate_reply(instructions="Greet the user.")


if __name__ == "__main__":
    cli.run_app(server)
