"""Open what a user or a visitor names, within limits, and name it without its secrets."""

import re


# Control characters but tab and line feed, line separators, changes of the direction of writing, lone surrogates
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Parameters of a URL that give access: S3, Google Cloud, Azure, CloudFront and the usual names
SECRET_NAMES = (
    r"[\w.%-]*(?:signature|token|secret|passw(?:or)?d|credential|session)[\w.%-]*"
    r"|sig|pwd|auth[\w-]*|key|api[-_]?key|awsaccesskeyid|googleaccessid|key-pair-id|policy"
)
SECRETS = (
    (re.compile(r"(?<=://)[^/?#@\s'\"]+@"), "***@"),
    (re.compile(rf"([?&;](?:{SECRET_NAMES})=)[^&;#\s'\"<>)]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{8,}"), r"\1***"),
    (re.compile(r"\b(Bearer )\S+", re.IGNORECASE), r"\1***"),
)


def printable(text: str) -> str:
    r"""Escape what a terminal would obey, or a text file could not hold: "\x1b[2J" is printed, not carried out."""
    return UNPRINTABLE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def mask_secrets(text: str) -> str:
    """Replace passwords, signatures and tokens by `***`: in URLs, in headers, and those of the Hub and of OpenAI."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text
