"""The listeners' certificate: kept in the workspace, issued anew when names change or its last third begins.

gRPC asks for the certificate at each handshake, so a renewed one is used without a restart and without cutting a line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import cast

import grpc
from cryptography import x509

from common import timestamps
from common.errors import IdentityError
from common.files import read_bounded, write_atomically
from common.identity import certificates
from common.identity.authority import Authority
from common.identity.tls_keys import TlsKey
from owner.workspace import Workspace

_log = logging.getLogger(__name__)


class ServerCertificate:
    """Raises IdentityError and StorageError, from here and from `refresh`."""

    def __init__(
        self,
        workspace: Workspace,
        authority: Authority,
        *,
        names: Sequence[str],
        days: float,
        clock: Callable[[], datetime] = timestamps.now,
    ) -> None:
        self._workspace = workspace
        self._authority = authority
        self._names = tuple(names)
        self._days = days
        self._clock = clock
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> bool:
        """Issue a new certificate if there is none, it is for other names, or it is due; returns whether one was issued."""
        with self._lock:
            try:
                self._key, self._chain = self._read()
            except (IdentityError, FileNotFoundError) as reason:
                issued = self._authority.issue_server(self._names, days=self._days, now=self._clock())
                # A kill between the two leaves a pair that does not fit, which `_read` sees.
                issued.key.save(self._workspace.server_key, replace=True)
                write_atomically(self._workspace.server_certificate, issued.certificate_chain_pem)
                self._key, self._chain = issued.key.pem, issued.certificate_chain_pem
                _log.info("new server certificate until %s (%s)", timestamps.to_text(issued.not_after), reason)
                return True
            return False

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """For one listener; `mutual` asks for a client certificate of the owner's authority."""
        configuration = grpc.ssl_server_certificate_configuration
        root = self._authority.certificate_pem if mutual else None
        shown = self._chain

        def changed() -> grpc.ServerCertificateConfiguration | None:
            """None: go on with the one in use."""
            nonlocal shown
            with self._lock:
                if self._chain == shown:
                    return None
                shown = self._chain
                return configuration([(self._key, self._chain)], root)

        # The published types of gRPC forget that the fetcher may return None.
        fetcher = cast("Callable[[], grpc.ServerCertificateConfiguration]", changed)
        initial = configuration([(self._key, self._chain)], root)
        return grpc.dynamic_ssl_server_credentials(initial, fetcher, require_client_authentication=mutual)

    def _read(self) -> tuple[bytes, bytes]:
        """Key and chain on disk. Raises IdentityError saying why they will not do, FileNotFoundError."""
        for path in (self._workspace.server_key, self._workspace.server_certificate):
            if not path.exists():
                raise FileNotFoundError(f"{path.name} is missing")
        key = TlsKey.load(self._workspace.server_key)
        chain = read_bounded(self._workspace.server_certificate, 2 * certificates.LIMIT)
        certificate, *authority = x509.load_pem_x509_certificates(chain)
        if certificates.spki(certificate.public_key()) != certificates.spki(key.private_key.public_key()):
            raise IdentityError("key and certificate do not belong together")
        if authority != [x509.load_pem_x509_certificate(self._authority.certificate_pem)]:
            raise IdentityError("it was issued by another authority")
        if self._covered(certificate) != set(self._names):
            raise IdentityError("it is for other names than service.names")
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if self._clock() >= end - (end - start) / 3:
            raise IdentityError("the last third of its lifetime has begun")
        return key.pem, chain

    @staticmethod
    def _covered(certificate: x509.Certificate) -> set[str]:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
