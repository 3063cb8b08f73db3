"""Who is who: signing keys, the owner's certificate authority, enrolment, invitations. The one part of common that
needs cryptography; this file imports nothing, so that `common.identity.names` stays usable without it.

names         contributor names, host names, addresses
keys          Ed25519 signing keys, domain-separated signatures
tls_keys      EC P-256 private keys of TLS sessions and of the authority
certificates  reading certificates and requests
authority     the owner's X.509 authority: server and contributor certificates
requests      what a contributor sends to enrol, and its proof of possession
invitation    the string an owner hands to a contributor
"""
