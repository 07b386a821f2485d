"""The `lipcast-train` command."""
