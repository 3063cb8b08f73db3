"""The clients' side, bound by name: owner and contributor never import each other."""

from __future__ import annotations

import importlib
from typing import Any, Final

from common.errors import ConfigurationError

OWN_CLIENTS: Final = "contributor.federated"


def load_clients(name: str, *, attacked: bool = False) -> Any:
    """The module that holds the ClientApp, as Flower binds it.

    attacked: some of its clients attack, so that it must say which.
    Raises ConfigurationError where there is none, or where it lacks `client_app`, `check` or, where attacked, `attacking`.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"the client app {name!r} cannot be imported: {error}") from None
    for needed in ("client_app", "check", *(["attacking"] if attacked else [])):
        if not callable(getattr(module, needed, None)):
            raise ConfigurationError(
                f"the client app {name!r} has no {needed}(task)",
                hint=f"where Portier's own clients attack in it: from {OWN_CLIENTS} import {needed}"
                if needed == "attacking"
                else "",
            )
    return module
