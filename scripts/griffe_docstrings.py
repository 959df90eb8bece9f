"""Render the docstrings, which are in the style of transformers, in the API reference of the site (`mkdocs.yml`)."""

import inspect
import re

import griffe


SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Examples?):")
PARAMETER = re.compile(r"([\w*]+(?:(?:, | and )[\w*]+)*)(.*)")


class MarkdownDocstrings(griffe.Extension):
    """Write the sections of docstrings as Markdown, and references ([`Name`]) as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Return a docstring as Markdown: sections have bold headings, parameters are items of a list."""
    lines, section = [], None
    for line in inspect.cleandoc(re.sub(r"\[`~?([^`]+)`\](?!\()", r"`\1`", docstring)).splitlines():
        if heading := SECTION.fullmatch(line):
            section = heading[1]
            lines += ["", f"**{'Arguments' if section == 'Args' else section}**", ""]
        elif section in ("Args", "Attributes") and re.match(r" {4}\S", line):
            lines.append("- " + PARAMETER.sub(r"**\1**\2", line.strip(), count=1))
        elif section in ("Args", "Attributes"):
            lines.append(line[4:])
        else:
            lines.append(line.removeprefix("    ") if section in ("Returns", "Yields", "Raises") else line)
    return "\n".join(lines)
