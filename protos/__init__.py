"""The wire protocol: collaboration.proto and the stubs generated from it (`make protos`)."""

PORTIER = True
