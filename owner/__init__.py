"""What the owner of a model runs: service, ledger, gatekeeper, detectors, reports and command line."""

import importlib

PORTIER = True

# `common` and `protos` are generic names: another package of that name, earlier on the path, would shadow ours and fail
# somewhere deep. The check cannot live in `common` itself, which is what may be shadowed.
for _name in ("common", "protos"):
    _module = importlib.import_module(_name)
    if not getattr(_module, "PORTIER", False):
        raise ImportError(
            f"the package {_name!r} at {getattr(_module, '__file__', None) or list(_module.__path__)} shadows Portier's "
            f"own; move or rename it, start Python from another folder, or install Portier in a virtual environment "
            f"of its own"
        )
