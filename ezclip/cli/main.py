"""The command `ezclip`."""

import sys
from importlib import import_module


# Subcommand: the module whose `main` runs it, and a line of help
COMMANDS = {
    "classify": ("ezclip.cli.classify", "say which of your labels fit your videos"),
    "run": ("run_video_zeroshot", "train, evaluate and predict"),
    "demo": ("run_video_zeroshot", "train and evaluate a tiny model on clips rendered here"),
    "convert": ("ezclip.cli.convert", "convert a checkpoint of the authors"),
    "check": ("ezclip.cli.check", "check video files before a long run"),
    "compare": ("ezclip.cli.compare", "evaluate several systems on the same videos"),
    "describe": ("ezclip.cli.describe", "write class descriptions with a language model"),
    "export": ("ezclip.cli.export", "export a model to ONNX or torch.export"),
    "push": ("ezclip.cli.push", "push a model to the Hub with a card"),
    "report": ("ezclip.cli.report", "write a page about one or several evaluations"),
    "timeline": ("ezclip.cli.timeline", "label the segments of a long video"),
    "attention": ("ezclip.cli.attention", "draw where a model looks"),
    "app": ("ezclip.cli.app", "serve a page to try a model on"),
}
# Arguments that a subcommand puts before those of the user
FIRST_ARGUMENTS = {"demo": ["--demo", "--output_dir", "demo"]}


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
        print(f"{usage()}\n\nezclip: the command must be one of {', '.join(COMMANDS)}, got {name!r}.", file=sys.stderr)
        return 2
    return import_module(COMMANDS[name][0]).main([*FIRST_ARGUMENTS.get(name, []), *rest])


def usage() -> str:
    """Return the help text: one line for each subcommand."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help}" for name, (_, help) in COMMANDS.items()]
    return "\n".join(["usage: ezclip COMMAND [OPTIONS]", "", *lines, "", "`ezclip COMMAND --help` lists its options."])


if __name__ == "__main__":
    sys.exit(main())
