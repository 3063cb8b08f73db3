"""The one exception tree of Portier, with the exit code each branch ends a command with.

    PortierError                     1
    +-- ConfigurationError          10   a setting, flag or file is wrong
    |   +-- UnknownNameError        11   no data set, model, attack ... of that name
    |   +-- MissingExtraError       12   an optional package is not installed
    +-- DataError                   13   data cannot be read or do not fit the model
    +-- ModelError                  14   a model cannot be built, split or run
    +-- StorageError                20   a file cannot be written or read
    |   +-- WorkspaceError          21   a workspace is missing, half made or in use
    +-- PortInUseError              22   another program listens on that port
    +-- IdentityError               30   who is this? a certificate, key or name does not hold
    |   +-- InvitationError         31   an invitation is malformed, used or expired
    |   +-- SignatureError          32   a signature does not verify
    |   +-- RevokedError            33   the contributor has been revoked
    +-- WireError                   40   bytes from outside break a rule; carries a reason code
    |   +-- WeightsError            41   a safetensors file
    |   +-- ManifestError           42   a manifest
    +-- ProtocolError               50   the other side broke the protocol
    |   +-- ConnectionLostError     51   the other side cannot be reached
    |   +-- QuotaError              52   a quota is used up
    |   |   +-- TriesUsedUpError    54   no submission on that release is left, whatever one waits for
    |   +-- DeclinedError           53   the owner declined the submission
    +-- LedgerError                 60   the ledger refuses
    |   +-- LedgerTamperedError     61   the ledger, or a receipt against it, does not verify
    +-- GuardError                  70   a guard cannot be fitted or used
        +-- GuardMismatchError      71   guard and release, device or dtype do not belong together
        +-- VacuousGateError        72   the activations do not depend on the parameters
        +-- ResolutionError         73   a level is finer than the references can resolve
        +-- GuardNotReadyError      74   a guard is not there yet, or no longer
        +-- GuardRangeError         75   the model has moved to where its guard's scores mean nothing

The library raises; only the command lines exit. Errors about bytes from outside (`WireError`) carry a
`code`, which goes into ledger entries and onto the wire.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal


class PortierError(Exception):
    """Something a person can act on. `message` says what was wrong and where, `hint` what to do.

    >>> error = PortierError("the guard is missing", hint="run `portier-owner protect`")
    >>> print(error.diagnostics())
    the guard is missing
      -> run `portier-owner protect`
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def diagnostics(self) -> str:
        """The error as a person should see it: the message, and below it what to do."""
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


def diagnostics(error: PortierError | OSError) -> str:
    """As a person should see it, where the system's own errors are met beside ours."""
    return error.diagnostics() if isinstance(error, PortierError) else str(error)


class ConfigurationError(PortierError):
    exit_code = 10


class UnknownNameError(ConfigurationError):
    """No `kind` of that name; names the nearest valid one.

    shown: the choices that the hint lists, of many; left out, all of them.

    >>> UnknownNameError("data set", "cifar", ["cifar10", "digits"]).hint
    'did you mean cifar10? (known: cifar10, digits)'
    """

    exit_code = 11

    def __init__(self, kind: str, name: str, choices: Iterable[str], *, shown: Iterable[str] | None = None) -> None:
        known = sorted(choices)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        suggestion = f"did you mean {near[0]}? " if near else ""
        listed = known if shown is None else sorted(shown)
        super().__init__(f"unknown {kind} {name!r}", hint=f"{suggestion}(known: {', '.join(listed)})")
        self.name = name
        self.choices = tuple(known)


class MissingExtraError(ConfigurationError):
    exit_code = 12


class DataError(PortierError):
    exit_code = 13


class ModelError(PortierError):
    exit_code = 14


class StorageError(PortierError):
    exit_code = 20


class WorkspaceError(StorageError):
    exit_code = 21


class PortInUseError(PortierError):
    exit_code = 22


class IdentityError(PortierError):
    exit_code = 30


class InvitationError(IdentityError):
    exit_code = 31


class SignatureError(IdentityError):
    exit_code = 32


class RevokedError(IdentityError):
    exit_code = 33


class WireError(PortierError):
    """Bytes from outside break a rule. `code` is stable, upper case and machine-readable (`HEADER_TOO_LONG`)."""

    exit_code = 40

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class WeightsError(WireError):
    exit_code = 41


class ManifestError(WireError):
    exit_code = 42


class ProtocolError(PortierError):
    exit_code = 50


class ConnectionLostError(ProtocolError):
    exit_code = 51


class QuotaError(ProtocolError):
    """`setting` is the dotted name of the setting that holds the limit, where one does. It is for the owner's log; whoever is
    refused reads the message."""

    exit_code = 52

    def __init__(self, message: str, *, hint: str = "", setting: str = "") -> None:
        super().__init__(message, hint=hint)
        self.setting = setting


class TriesUsedUpError(QuotaError):
    """Unlike the other quotas, this one is never given back: only another release can be contributed to."""

    exit_code = 54


class DeclinedError(ProtocolError):
    exit_code = 53


class LedgerError(PortierError):
    exit_code = 60


class LedgerTamperedError(LedgerError):
    exit_code = 61


GuardPart = Literal["base", "root", "escalation"]


class GuardError(PortierError):
    """`of`: the guard of a submission's base, that of the root release, or the escalation tier of the base's."""

    exit_code = 70
    of: GuardPart = "base"


class GuardMismatchError(GuardError):
    exit_code = 71


class VacuousGateError(GuardError):
    exit_code = 72


class ResolutionError(GuardError):
    exit_code = 73


class GuardRangeError(GuardError):
    """The model has moved to where its guard's scores mean nothing."""

    exit_code = 75


class GuardNotReadyError(GuardError):
    """Nothing is wrong with the guard; what needs it is done later."""

    exit_code = 74


def exit_codes() -> dict[int, type[PortierError]]:
    """Every exit code of the tree, and the error it stands for.

    >>> exit_codes()[21].__name__
    'WorkspaceError'
    """
    found: dict[int, type[PortierError]] = {}
    kinds = [PortierError]
    while kinds:
        kind = kinds.pop()
        if "exit_code" in vars(kind) and kind.__module__ == __name__:
            found[kind.exit_code] = kind
        kinds += kind.__subclasses__()
    return found
