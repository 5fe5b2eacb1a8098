"""`kljudge completion`: scripts that complete commands, options and their choices, made from the parser itself."""

from __future__ import annotations

import argparse
import shlex

from kljudge_jax.commands.options import OK, command

_SHELLS = ("bash", "zsh", "fish")

# Written down, for a shell that starts does not wait for JAX; a test holds them to the rules there are.
RULE_WORDS = [
    "none",
    "exact",
    "kl",
    "judge",
    "all",
    "block",
    "cactus",
    "ensemble",
    "entropy",
    "fly",
    "fuzzy",
    "kseq",
    "lenience",
    "margin",
    "mentored",
    "pivot",
    "random",
    "reflective",
    "synthetic",
    "thinking",
    "topk",
    "typical",
]


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
        chosen = []
        for words, action in _options(parser):
            if action.nargs == 0:
                continue
            offered = shlex.quote(" ".join(_values(action)))
            found = f'$(compgen -W {offered} -- "$word")' if _values(action) else ""
            if action.metavar == "MODEL":
                found += ' $(compgen -f -- "$word")'
            # With nothing to offer, the shell's own completion follows: files.
            chosen.append(f"{'|'.join(words)}) COMPREPLY=({found}); return;;")
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
            values = f" -a {shlex.quote(' '.join(_values(action)))}" if _values(action) else ""
            takes = f" -r -F{values}" if action.metavar == "MODEL" or not values else f" -x{values}"
            lines.append(f"{here} {long}{'' if action.nargs == 0 else takes} -d {shlex.quote(action.help or '')}")
        lines += [f"{here} -f -a {shlex.quote(' '.join(choices))}" for _, choices in _positional(parser)]
    return "\n".join(lines)


def _options(parser: argparse.ArgumentParser) -> list[tuple[list[str], argparse.Action]]:
    return [(list(action.option_strings), action) for action in parser._actions if action.option_strings]


def _values(action: argparse.Action) -> list[str]:
    """What may be offered as the value of an option; nothing where that is a file or a number."""
    if action.choices:
        return list(map(str, action.choices))
    return {"MODEL": ["embedded"], "RULE": RULE_WORDS, "RULES": RULE_WORDS}.get(str(action.metavar), [])


def _positional(parser: argparse.ArgumentParser) -> list[tuple[str, list[str]]]:
    return [
        (action.dest, list(map(str, action.choices)))
        for action in parser._actions
        if not action.option_strings and action.choices
    ]
