"""Which of a contributor's classes is which of the release's, where the two have other names for them."""

from __future__ import annotations

from common.errors import ConfigurationError


def parse_classes(text: str) -> dict[str, str]:
    """From `OWN=RELEASE,OWN=RELEASE`: the release's class by the contributor's own. Several of one's own may be one of the
    release's.

    >>> parse_classes("eight=8, five=5")
    {'eight': '8', 'five': '5'}

    Raises ConfigurationError where it is malformed or gives a class twice.
    """
    classes: dict[str, str] = {}
    for part in text.split(","):
        own, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or not own or not theirs:
            raise ConfigurationError(
                f"classes {text!r}: {part.strip()!r} is not OWN=RELEASE", hint="write eight=8,five=5 for example"
            )
        if own in classes:
            raise ConfigurationError(f"classes {text!r} says twice what {own} is")
        classes[own] = theirs
    return classes
