"""`kljudge completion`: scripts that complete commands, options and their choices, made from the parser itself."""

from __future__ import annotations

import argparse
import shlex

from kljudge_jax.commands.options import OK, command

_SHELLS = ("bash", "zsh", "fish")


def add(commands) -> None:
    parser = command(
        commands,
        "completion",
        _completion,
        "Print a script that completes commands and options in a shell.",
        '  eval "$(kljudge completion bash)"          # or in ~/.bashrc\n'
        '  eval "$(kljudge completion zsh)"           # or in ~/.zshrc, after compinit\n'
        "  kljudge completion fish > ~/.config/fish/completions/kljudge.fish",
    )
    parser.add_argument("shell", choices=_SHELLS, help="whose script")
    parser.set_defaults(commands=commands)


def _completion(options) -> int:
    parsers = options.commands.choices
    print(_fish(parsers) if options.shell == "fish" else _bash(parsers, options.shell == "zsh"))
    return OK


def _bash(parsers: dict[str, argparse.ArgumentParser], zsh: bool) -> str:
    """A function for `complete -F`, which zsh understands as well; what is no option or choice is a file."""
    cases = []
    for name, parser in parsers.items():
        chosen = [
            f'{"|".join(words)}) COMPREPLY=($(compgen -W {shlex.quote(" ".join(choices))} -- "$word")); return;;'
            for words, choices in _choices(parser)
        ]
        given = " ".join(word for words, _ in _options(parser) for word in words if word.startswith("--"))
        named = " ".join(choice for _, choices in _positional(parser) for choice in choices)
        cases.append(
            f"    {name})\n"
            + (f'      case "$before" in {" ".join(chosen)} esac\n' if chosen else "")
            + f"      words={shlex.quote(f'{given} {named}'.strip())};;"
        )
    return "\n".join(
        [
            *(["autoload -U +X bashcompinit && bashcompinit"] if zsh else []),
            "_kljudge() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words',
            "  COMPREPLY=()",
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f'    COMPREPLY=($(compgen -W {shlex.quote(" ".join([*parsers, "--help", "--version"]))} -- "$word"))',
            "    return",
            "  fi",
            '  case "${COMP_WORDS[1]}" in',
            *cases,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            "complete -o default -F _kljudge kljudge",
        ]
    )


def _fish(parsers: dict[str, argparse.ArgumentParser]) -> str:
    lines = []
    for name, parser in parsers.items():
        about = shlex.quote((parser.description or "").split(". ")[0])
        lines.append(f"complete -c kljudge -n __fish_use_subcommand -f -a {name} -d {about}")
        here = f"complete -c kljudge -n '__fish_seen_subcommand_from {name}'"
        for words, action in _options(parser):
            long = " ".join(f"-l {word[2:]}" for word in words if word.startswith("--"))
            takes = f" -x -a {shlex.quote(' '.join(map(str, action.choices)))}" if action.choices else " -r"
            lines.append(f"{here} {long}{'' if action.nargs == 0 else takes} -d {shlex.quote(action.help or '')}")
        lines += [f"{here} -f -a {shlex.quote(' '.join(choices))}" for _, choices in _positional(parser)]
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> list[tuple[list[str], argparse.Action]]:
    return [(list(action.option_strings), action) for action in parser._actions if action.option_strings]


def _choices(parser: argparse.ArgumentParser) -> list[tuple[list[str], list[str]]]:
    return [(words, list(map(str, action.choices))) for words, action in _options(parser) if action.choices]


def _positional(parser: argparse.ArgumentParser) -> list[tuple[str, list[str]]]:
    return [
        (action.dest, list(map(str, action.choices)))
        for action in parser._actions
        if not action.option_strings and action.choices
    ]
