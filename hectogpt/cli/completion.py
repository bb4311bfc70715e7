"""`hectogpt completion bash|zsh|fish`: a script that completes commands, their options and values, and recipes.

The script is made from the commands' own argument classes and holds everything that it offers: completing a word starts
no Python.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

import hectogpt
from hectogpt.cli import COMMANDS, argument_classes

EXAMPLES = """\
  hectogpt completion bash > ~/.local/share/bash-completion/completions/hectogpt
  hectogpt completion zsh > "${fpath[1]}/_hectogpt"
  hectogpt completion fish > ~/.config/fish/completions/hectogpt.fish"""

# What follows a command and has arguments of its own -> their class.
SUBCOMMANDS = {"explore": {"numbers": "NumbersArguments", "export": "ExportArguments"}}
CORPORA = ["sotu", "tinystories"]


@dataclass(frozen=True)
class CompletionArguments:
    """Print a completion script for a shell: commands, options, values, recipes. Make it again after an update."""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """Which shell."""


@dataclass
class Line:
    """What can follow a command, or a command with its subcommand.

    words: arguments without a dash. options: with one. values: option -> the words that can follow it.
    """

    words: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=lambda: ["--help"])
    values: dict[str, list[str]] = field(default_factory=dict)


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = tyro.cli(CompletionArguments, args=argv, prog="hectogpt completion")
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell](read_lines()), end="")


def read_lines() -> dict[str, Line]:
    """Command, or "command subcommand" -> what can follow it."""
    from hectogpt.lab import recipes
    from hectogpt.lab.ladder import LADDER

    names = [*recipes.names(), "top"]
    lines: dict[str, Line] = {}
    for command, (place, _) in COMMANDS.items():
        module = importlib.import_module(place)
        subcommands = SUBCOMMANDS.get(command, {})
        line = lines[command] = Line(words=list(subcommands))
        for kind in argument_classes(module):
            add_options(line if kind.__name__ not in subcommands.values() else Line(), kind)
        for word, name in subcommands.items():
            add_options(lines.setdefault(f"{command} {word}", Line()), getattr(module, name))
    for name in recipes.names():  # recipes differ in their parts, and these in their options
        run = recipes.recipe(name)
        add_options(lines["train"], type(run), run)
    lines["train"].options.append("--help-all")
    for command in ("train", "compare"):
        lines[command].words += names
        lines[command].values["--corpus"] = CORPORA
    lines["compare"].values["--without"] = ["all", *(rung.__name__ for rung in LADDER)]
    lines["data"].words += CORPORA
    for line in lines.values():
        line.options = list(dict.fromkeys(line.options))
    return lines


def add_options(line: Line, kind: type, value: Any = None, prefix: str = "") -> None:
    """Add the fields of a dataclass as options; those of parts inside `value` as --part.field."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        hint, now = hints[item.name], getattr(value, item.name, None)
        name = prefix + item.name.replace("_", "-")
        if typing.get_origin(hint) is Annotated:
            if tyro.conf.Positional in typing.get_args(hint) or "Positional" in str(typing.get_args(hint)[1:]):
                line.words += choices(typing.get_args(hint)[0])
                continue
            hint = typing.get_args(hint)[0]
        parts = [(name, now)] if dataclasses.is_dataclass(now) else []
        if isinstance(now, tuple):
            parts = [(f"{name}.{i}", part) for i, part in enumerate(now) if dataclasses.is_dataclass(part)]
        for place, part in parts:
            add_options(line, type(part), part, f"{place}.")
        if parts or has_parts(hint):
            continue
        line.options.append(f"--{name}")
        if hint is bool:
            section, dot, last = name.rpartition(".")
            line.options.append(f"--{section}{dot}no-{last}")
        elif words := choices(hint):
            line.values[f"--{name}"] = words


def has_parts(hint: Any) -> bool:
    """Whether a field of this type holds dataclasses, for which there are no options while there are none in it."""
    return dataclasses.is_dataclass(hint) or any(map(has_parts, typing.get_args(hint)))


def choices(hint: Any) -> list[str]:
    """The words of which one is a value of this type; [] if there are others."""
    if typing.get_origin(hint) is Literal:
        return [str(word) for word in typing.get_args(hint)]
    return ["True", "False", "None"] if hint == (bool | None) else []


def title(shell: str) -> str:
    """The first line of a script."""
    return f"# Completion of hectogpt {hectogpt.__version__} for {shell}, made by `hectogpt completion {shell}`"


def bash(lines: dict[str, Line]) -> str:
    """The script for bash."""
    return f"""\
{title("bash")}
_hectogpt() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    local line=${{COMP_WORDS[1]}} words= options= values=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join([*COMMANDS, "--help", "--version", "--debug"])}" -- "$current"))
        return
    fi
    if [ "$COMP_CWORD" -gt 2 ]; then
        case "$line ${{COMP_WORDS[2]}}" in
            {"|".join(f'"{name}"' for name in lines if " " in name)}) line="$line ${{COMP_WORDS[2]}}" ;;
        esac
    fi
    case $line in
{"".join(_bash_case(name, line) for name, line in lines.items())}    esac
    case $current in -*) words=$options ;; *) [ -n "$values" ] && words=$values ;; esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _hectogpt hectogpt
"""


def _bash_case(name: str, line: Line) -> str:
    values = "".join(f'                {o}) values="{" ".join(v)}" ;;\n' for o, v in line.values.items())
    previous = f"            case $previous in\n{values}            esac\n" if values else ""
    return f"""\
        "{name}")
            words="{" ".join(line.words)}"
            options="{" ".join(line.options)}"
{previous}            ;;
"""


def zsh(lines: dict[str, Line]) -> str:
    """The script for zsh; it can be sourced, or lie in a folder of $fpath as _hectogpt."""
    commands = "\n".join(f"            {quoted(f'{name}:{what}')}" for name, (_, what) in COMMANDS.items())
    return f"""\
#compdef hectogpt
{title("zsh")}
_hectogpt() {{
    local line=$words[2] current=$words[CURRENT] previous=$words[CURRENT-1]
    local -a commands found options values
    if (( CURRENT == 2 )); then
        commands=(
{commands}
        )
        _describe command commands
        return
    fi
    if (( CURRENT > 3 )); then
        case "$line $words[3]" in
            ({"|".join(f'"{name}"' for name in lines if " " in name)}) line="$line $words[3]" ;;
        esac
    fi
    case $line in
{"".join(_zsh_case(name, line) for name, line in lines.items())}    esac
    if [[ $current == -* ]]; then
        compadd -a options
    elif (( $#values )); then
        compadd -a values
    else
        (( $#found )) && compadd -a found
        _files
    fi
}}
if [[ $funcstack[1] == _hectogpt ]]; then _hectogpt "$@"; else compdef _hectogpt hectogpt; fi
"""


def _zsh_case(name: str, line: Line) -> str:
    values = "".join(f"                ({o}) values=({' '.join(v)}) ;;\n" for o, v in line.values.items())
    previous = f"            case $previous in\n{values}            esac\n" if values else ""
    return f"""\
        ("{name}")
            found=({" ".join(line.words)})
            options=({" ".join(line.options)})
{previous}            ;;
"""


def fish(lines: dict[str, Line]) -> str:
    """The script for fish."""
    commands = [
        f"complete -c hectogpt -f -n __fish_use_subcommand -a {name} -d {quoted(what)}"
        for name, (_, what) in COMMANDS.items()
    ]
    return "\n".join([title("fish"), *commands, *(r for n, line in lines.items() for r in _fish_rules(n, line))]) + "\n"


def _fish_rules(name: str, line: Line) -> Iterator[str]:
    command, _, word = name.partition(" ")
    seen = f"__fish_seen_subcommand_from {command}"
    if word:
        seen += f"; and __fish_seen_subcommand_from {word}"
    elif command in SUBCOMMANDS:
        seen += f"; and not __fish_seen_subcommand_from {' '.join(SUBCOMMANDS[command])}"
    start = f"complete -c hectogpt -n '{seen}'"
    if line.words:
        yield f"{start} -a '{' '.join(line.words)}'"
    for option in line.options:
        values = line.values.get(option)
        yield f"{start} -l {option[2:]}" + (f" -x -a '{' '.join(values)}'" if values else "")


def quoted(text: str) -> str:
    """The text in single quotes, for zsh and fish, which differ in how a quote is escaped: it becomes a blank."""
    return "'" + text.replace("'", " ").replace("\\", " ") + "'"
