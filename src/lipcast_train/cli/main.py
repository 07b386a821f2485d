"""The entry point of `lipcast-train`; errors are reported as those of `lipcast`."""

from __future__ import annotations

from collections.abc import Sequence

from lipcast.cli import main as lipcast_main


def _train(arguments: Sequence[str]) -> int:
    # Here, so that an interrupt while they load is handled like any other.
    from lipcast_train.cli.app import run_command

    return run_command(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; never raises."""
    return lipcast_main.main(arguments, _train)


def run() -> None:
    """Run the `lipcast-train` command of this process."""
    lipcast_main.run(_train)


if __name__ == "__main__":
    run()
