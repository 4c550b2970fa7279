"""The command line as click knows it, with the help of its arguments.

Since click 8.5 an argument has a help of its own, with which it forgets the one that Typer 0.20 has just set; a later
Typer, which Flower 1.41 does not allow, knows that.
"""

from __future__ import annotations

import inspect
from typing import get_type_hints

import click
import typer.main
from typer.core import TyperArgument
from typer.models import ArgumentInfo


def command_of(app: typer.Typer) -> click.Command:
    """The application's command, or group of commands."""
    command = typer.main.get_command(app)
    _restore(command)
    return command


def _restore(command: click.Command) -> None:
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _restore(inner)
    elif command.callback is not None:
        hints = get_type_hints(inspect.unwrap(command.callback), include_extras=True)
        for parameter in command.params:
            if isinstance(parameter, TyperArgument) and parameter.name in hints:
                declared = getattr(hints[parameter.name], "__metadata__", ())
                parameter.help = next((m.help for m in declared if isinstance(m, ArgumentInfo)), parameter.help)
