"""The owner's gRPC service: enrolment on one TLS listener, collaboration on another, mutually authenticated.

server          listeners, start, graceful stop
authentication  the door every call goes through
calls           calls in progress, ended by revocation and stop
collaboration   the calls of an enrolled contributor
enrolment       tokens and certificates
uploads         one call's chunks, in order and bounded; part_file: the same on disk
downloads       release weights from any offset
quotas          what is refused before a byte is taken; limits: the fixed bounds
changes         what moved in the ledger, for watchers and revocations
reconciliation  what a killed process left
views           what a contributor sees
statuses        errors as gRPC statuses
tls             the listeners' certificate
memory          the allocator
"""

from owner.service.server import serve

__all__ = ["serve"]
