"""From `--attack flip:source=7,target=6,fraction=0.5` to the attack."""

from __future__ import annotations

import importlib

from common.errors import ConfigurationError
from common.specs import choose, split_own, split_spec
from contributor.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from contributor.attacks.add_noise import AddNoise
from contributor.attacks.anchored import Anchored
from contributor.attacks.badnets import BadNets
from contributor.attacks.base import Attack
from contributor.attacks.blended import Blended
from contributor.attacks.bn_restore import BnRestore
from contributor.attacks.flip import Flip
from contributor.attacks.model_replacement import ModelReplacement
from contributor.attacks.neurotoxin import Neurotoxin
from contributor.attacks.norm_bounded import NormBounded
from contributor.attacks.pattern import Pattern
from contributor.attacks.same_value import SameValue
from contributor.attacks.sig import Sig
from contributor.attacks.sign_flip import SignFlip
from contributor.attacks.subnet_replacement import SubnetReplacement
from contributor.attacks.tact import TaCT
from contributor.attacks.wanet import WaNet

KINDS: dict[str, type[Attack]] = {
    kind.name: kind
    for kind in (
        Flip,
        Pattern,
        BadNets,
        Blended,
        Sig,
        WaNet,
        AdaptiveBlend,
        AdaptivePatch,
        TaCT,
        Anchored,
        NormBounded,
        Neurotoxin,
        BnRestore,
        ModelReplacement,
        SubnetReplacement,
        SignFlip,
        AddNoise,
        SameValue,
    )
}


def parse_attack(text: str) -> Attack:
    """The attack a specification names: one of KINDS, or a class of one's own as `package.module:Class:option=value`, whose
    module is imported here.

    >>> parse_attack("flip:source=horse,target=frog,fraction=0.25")
    Flip(source='horse', target='frog', fraction=0.25, alone=False)
    >>> str(parse_attack("add-noise"))
    'add-noise:deviation=0.3,buffers=False'

    Raises UnknownNameError naming the nearest attack or option, ConfigurationError naming option and limit, or what keeps a class
    of one's own from being an attack. Classes are looked up when the attack meets data.
    """
    own = split_own(text)
    if own and own[0].replace("_", "-") not in KINDS:
        module, name, given = own
        kind = _own_kind(module, name)
        return kind.from_options(split_spec(kind.name if given is None else f"{kind.name}:{given}", "attack")[1])
    name, options = split_spec(text, "attack")
    return choose(KINDS, name, "attack").from_options(options)


def _own_kind(module: str, name: str) -> type[Attack]:
    where = f"{module}:{name}"
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs a user's file, which may raise anything
        raise ConfigurationError(
            f"the attack {where!r} cannot be imported: {type(error).__name__}: {error}",
            hint=f"its module must be installed or on PYTHONPATH; Portier's own: {', '.join(sorted(KINDS))}",
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Attack)):
        raise ConfigurationError(f"{where!r} is no class that derives from contributor.attacks.Attack")
    if "__dataclass_params__" not in vars(kind):
        raise ConfigurationError(
            f"the attack {where!r} is no dataclass, so that its options are unknown",
            hint="write @dataclasses.dataclass(frozen=True) above the class",
        )
    lacking = [what for what in ("name", "paper") if not isinstance(getattr(kind, what, None), str)]
    if lacking:
        raise ConfigurationError(
            f"the attack {where!r} lacks {' and '.join(lacking)}",
            hint="give the class `name` and `paper`, for reports",
        )
    return kind
