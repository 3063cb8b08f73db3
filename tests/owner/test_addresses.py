"""Ports that are free, and stay so until somebody listens."""

from __future__ import annotations

import socket

import pytest

from owner import addresses
from owner.addresses import free_ports


def test_a_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = free_ports(2)
    assert one != other
    monkeypatch.setattr(addresses, "_NEVER_HANDED_OUT", (one, other))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", one))
        listener.listen()
        assert free_ports(1) == (other,)
        with pytest.raises(OSError, match="fewer than 2 ports"):
            free_ports(2)
