"""What a flag of `lipcast generate` is: spelling, kind, help and the rule it follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class Kind(Enum):
    """What a flag's value is; the word is what the help shows."""

    TEXT = "TEXT"
    TEXTS = "TEXT ..."
    """May be given several times; arrives as one text of several lines."""
    WHOLE_VIDEO = "INTEGER"
    NUMBER = "NUMBER"
    TRUTH = "True/False"
    SWITCH = "given or not"
    TOGGLE = "on or off"
    """`--name` and `--no_name`."""


class Group(StrEnum):
    """The sections of the help, in order."""

    FILES = "Input and output"
    VIDEO = "The video"
    MACHINE = "The machine"
    MEMORY = "Memory, planned on a GPU (and on a CPU with --vram)"
    GPUS = "Several GPUs (on a CPU: several processes)"
    TALK = "What is printed"
    PUBLIC = "Flags of the public scripts that ask for what Lipcast does anyway"
    REFUSED = "Flags of the public scripts that this version refuses"


@dataclass(frozen=True, slots=True)
class SetsOption:
    """The value is used: it sets `target`, or what the flag is called.

    A switch with a `value` sets the target to that: another spelling of `--target value`.
    """

    target: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class CompatNoOp:
    """Accepted where the value is one of `values` (None: any), `because` Lipcast does that anyway.

    Any other value is refused with `otherwise`.
    """

    values: tuple[object, ...] | None
    because: str
    otherwise: str = ""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Known, but not in this version; the sentence says what to do."""

    sentence: str


Rule = SetsOption | CompatNoOp | Unsupported


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `name` is the spelling that the help shows, `also` are other spellings."""

    name: str
    group: Group
    kind: Kind
    help: str
    rule: Rule = SetsOption()
    default: str = ""
    also: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        return (self.rule.target or self.name) if isinstance(self.rule, SetsOption) else self.name

    @property
    def spellings(self) -> tuple[str, ...]:
        """As the parser takes them: "--size"; a toggle has its negation behind a slash."""
        if self.kind is Kind.TOGGLE:
            return (f"--{self.name}/--no_{self.name}",)
        return (f"--{self.name}", *self.also)
