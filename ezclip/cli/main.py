"""The command `ezclip`."""

import sys
from difflib import get_close_matches
from importlib import import_module


# Subcommand: the module whose `main` runs it, and a line of help
COMMANDS = {
    "classify": ("ezclip.cli.classify", "say which of your labels fit your videos"),
    "run": ("run_video_zeroshot", "train, evaluate and predict"),
    "demo": ("run_video_zeroshot", "train and evaluate a tiny model on clips rendered here"),
    "convert": ("ezclip.cli.convert", "convert a checkpoint of the authors"),
    "check": ("ezclip.cli.check", "check video files before a long run"),
    "compare": ("ezclip.cli.compare", "evaluate several systems on the same videos"),
    "leaderboard": ("ezclip.cli.leaderboard", "evaluate a model on the video tasks of mteb (MVEB)"),
    "describe": ("ezclip.cli.describe", "write class descriptions with a language model"),
    "merge": ("ezclip.cli.merge", "interpolate between the weights of a base and a model tuned from it"),
    "export": ("ezclip.cli.export", "export a model to ONNX or torch.export"),
    "push": ("ezclip.cli.push", "push a model to the Hub with a card"),
    "calibrate": ("ezclip.cli.calibrate", "make scores probabilities, on a few labelled videos or on texts"),
    "report": ("ezclip.cli.report", "write a page about one or several evaluations"),
    "timeline": ("ezclip.cli.timeline", "label the segments of a long video"),
    "index": ("ezclip.cli.index", "index the moments of many videos, for `ezclip search`"),
    "search": ("ezclip.cli.search", "find the moments of indexed videos that fit a text or a clip"),
    "live": ("ezclip.cli.live", "say what a camera shows while it runs"),
    "attention": ("ezclip.cli.attention", "draw where a model looks"),
    "app": ("ezclip.cli.app", "serve a page to try a model on"),
}
GROUPS = {
    "Try it": ("classify", "timeline", "live", "index", "search", "app", "demo"),
    "Train, evaluate and predict": ("run", "compare", "leaderboard", "calibrate", "report"),
    "Prepare": ("check", "describe", "convert", "merge"),
    "Look inside and hand on": ("attention", "export", "push"),
}
EXAMPLE = 'ezclip classify holiday/ --labels "surfing, making a cake, a dog running"'
# Names that other tools have for what a subcommand does
OTHER_NAMES = {
    "predict": "classify",
    "label": "classify",
    "train": "run",
    "eval": "run",
    "evaluate": "run",
    "test": "run",
    "mteb": "leaderboard",
    "serve": "app",
    "gui": "app",
    "upload": "push",
    "segment": "timeline",
    "find": "search",
    "retrieve": "search",
}
# Arguments that a subcommand puts before those of the user
FIRST_ARGUMENTS = {"demo": ["--demo=true"]}


def main(argv: list[str] | None = None) -> int | None:
    """Run a subcommand of `ezclip` and return its exit status. `None` is success."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = argv
    if name == "--version":
        print(f"ezclip {import_module('ezclip').__version__}")
        return 0
    if name not in COMMANDS:
        print(f"ezclip: {describe_unknown(name)} See `ezclip --help`.", file=sys.stderr)
        return 2
    try:
        return import_module(COMMANDS[name][0]).main([*FIRST_ARGUMENTS.get(name, []), *rest])
    except KeyboardInterrupt:
        print(f"\nezclip {name}: stopped.", file=sys.stderr)
        return 130


def describe_unknown(name: str) -> str:
    """Return a sentence about a subcommand that does not exist, with the one that was probably meant."""
    if name.startswith("-"):
        return f"A command comes first, such as `{EXAMPLE}`, got {name!r}."
    if name in OTHER_NAMES:
        return f"There is no command {name!r}: here it is `ezclip {OTHER_NAMES[name]}`."
    if near := get_close_matches(name, COMMANDS, 1):
        return f"There is no command {name!r}; the nearest is `ezclip {near[0]}`."
    return f"The command must be one of {', '.join(COMMANDS)}, got {name!r}."


def usage() -> str:
    """Return the help text: the subcommands by use, one line for each."""
    width = max(map(len, COMMANDS))
    lines = ["usage: ezclip COMMAND [OPTIONS]", "", "Classify videos with EZ-CLIP, plain CLIP and related models.", ""]
    lines += [f"    {EXAMPLE}", ""]
    for title, names in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<{width}}  {COMMANDS[name][1]}" for name in names), ""]
    return "\n".join([*lines, "`ezclip COMMAND --help` lists its options, `ezclip --version` says the version."])


if __name__ == "__main__":
    sys.exit(main())
