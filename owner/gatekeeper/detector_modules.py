"""Modules with detectors of one's own, imported because the owner's settings name them (`guard.modules`), and for no other reason.

A guard on disk names its detectors and no code; a contributor names nothing. So every process that fits or reads guards is
told by the one that starts it what to import, and imports it before it looks at a detector's name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

from common.errors import ConfigurationError, PortierError, UnknownNameError
from owner.choices import PRESETS
from owner.detectors import DETECTORS
from owner.gatekeeper.own_detectors import check_class

SETTING = "guard.modules"


def import_modules(modules: Iterable[str], *, named: Iterable[str] = ()) -> None:
    """Import `modules`, so that what they `register` is known by name. named: detectors that must be known then.

    Raises ConfigurationError for a module that cannot be imported, that registers no detector, or registers what is none;
    UnknownNameError, with all that are known, for a name that is not. What a module has registered before it failed is forgotten.
    """
    imported = tuple(modules)
    for name in imported:
        if name not in sys.modules:
            _import(name)
    for name in named:
        if name not in DETECTORS:
            error = UnknownNameError("detector", name, [*PRESETS, *DETECTORS])
            told = f"{SETTING} has {', '.join(imported)}" if imported else f"{SETTING} is empty"
            error.hint += f"; one of your own is known when the module that registers it is in {SETTING} ({told})"
            raise error


def _import(name: str) -> None:
    before = dict(DETECTORS)
    try:
        _run(name)
        added = DETECTORS.keys() - before.keys()
        if not added:
            raise ConfigurationError(
                f"the module {name!r} of {SETTING} registers no detector",
                hint="write @owner.detectors.register above the class, or leave the module out",
            )
        for detector in sorted(added):
            check_class(DETECTORS[detector])
    except BaseException:
        sys.modules.pop(name, None)
        DETECTORS.clear()
        DETECTORS.update(before)
        raise


def _run(name: str) -> None:
    try:
        importlib.import_module(name)
    except PortierError as error:  # of `register`
        raise ConfigurationError(f"the module {name!r} of {SETTING}: {error.message}", hint=error.hint) from error
    except Exception as error:  # importing runs a user's file, which may raise anything
        raise ConfigurationError(
            f"the module {name!r} of {SETTING} cannot be imported: {type(error).__name__}: {error}",
            hint="it must be installed, or its folder in PYTHONPATH, where this process runs",
        ) from error
