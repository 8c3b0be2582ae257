"""Parser classes of `sagastore-server`: options of the program are those of its commands."""

from __future__ import annotations

from typing import Any

from sagastore.commandline.program import Group, Program


class ForwardingGroup(Group):
    """A group that passes its options on to the command, as if they came after its name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command and its arguments, which begin with the options of this group."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, [*_given(self, ctx), *rest]


class ServerProgram(ForwardingGroup, Program):
    """The root of `sagastore-server`."""


def _given(group: Any, ctx: Any) -> list[str]:
    words: list[str] = []
    for option in group.params:
        source = ctx.get_parameter_source(option.name)
        if source is not None and source.name == "COMMANDLINE":
            words.append(option.opts[0])
            if not option.is_flag:
                words.append(str(ctx.params[option.name]))
    return words
