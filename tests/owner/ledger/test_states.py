"""The state machine, walked at random: the ledger refuses what the table refuses and always verifies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import LedgerError
from owner.ledger import GuardState, SubmissionState
from owner.ledger.states import TRANSITIONS, check_move
from tests.owner.ledger.world import World

S = SubmissionState
LEGAL = {
    (S.UPLOADING, S.RECEIVED),
    (S.UPLOADING, S.EXPIRED),
    (S.RECEIVED, S.AWAITING_GUARD),
    (S.RECEIVED, S.VETTING),
    (S.AWAITING_GUARD, S.RECEIVED),
    (S.VETTING, S.RECEIVED),
    (S.VETTING, S.ACCEPTED),
    (S.VETTING, S.REJECTED),
    (S.VETTING, S.QUARANTINED),
    (S.QUARANTINED, S.ACCEPTED),
    (S.QUARANTINED, S.REJECTED),
    (S.QUARANTINED, S.QUARANTINED),
}


@pytest.mark.parametrize("old", S)
@pytest.mark.parametrize("new", S)
def test_only_the_documented_moves_are_legal(old, new):
    if (old, new) in LEGAL:
        check_move("ab" * 32, old, new)
    else:
        with pytest.raises(LedgerError):
            check_move("ab" * 32, old, new)


def test_every_state_has_a_line_in_the_table():
    assert set(TRANSITIONS) == set(S)


class Ledger(RuleBasedStateMachine):
    """Any calls in any order. A model of states alone predicts which of them the ledger takes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.world = World.found(Path(self.folder.name) / "ledger.sqlite")
        self.world.enrol("ada")
        self.world.publish()
        self.states: dict[str, SubmissionState] = {}
        self.counter = -1
        self.begun = 0

    def teardown(self) -> None:
        self.world.store.close()
        self.folder.cleanup()

    @rule()
    def begin(self) -> None:
        self.begun += 1
        submission = self.world.begin("ada", str(self.begun))
        self.states[submission.id] = S.UPLOADING

    def _try(self, identifier: str, new: SubmissionState, call) -> None:
        if (self.states[identifier], new) in LEGAL:
            call()
            self.states[identifier] = new
        else:
            with pytest.raises(LedgerError):
                call()

    @precondition(lambda self: self.states)
    @rule(data=st.data(), new=st.sampled_from([S.ACCEPTED, S.REJECTED, S.QUARANTINED]))
    def decide(self, data, new: SubmissionState) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.states)))
        release = self.world.signed_release() if new is S.ACCEPTED else None
        verdict = {"step": self.world.store.change_counter()}
        self._try(identifier, new, lambda: self.world.store.decide(identifier, new, verdict, release=release))
        for one in self.world.store.releases():
            self.world.store.set_guard_state(one.id, GuardState.READY)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def expire(self, data) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.states)))
        if self.states[identifier] is not S.EXPIRED:
            self._try(identifier, S.EXPIRED, lambda: self.world.store.expire_upload(identifier, "UPLOAD_ABANDONED", ""))

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def commit(self, data) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.states)))
        if self.states[identifier] in (S.UPLOADING, S.EXPIRED):
            self._try(identifier, S.RECEIVED, lambda: self.world.store.committed(identifier))
        else:
            assert self.world.store.committed(identifier)[0].state is self.states[identifier]

    @rule()
    def claim(self) -> None:
        claimed = self.world.store.claim()
        if claimed is None:
            assert S.RECEIVED not in self.states.values()
        else:
            assert self.states[claimed.id] is S.RECEIVED
            self.states[claimed.id] = S.VETTING

    @rule()
    def crash(self) -> None:
        vetting = [name for name, state in self.states.items() if state is S.VETTING]
        assert self.world.reopen().requeue_interrupted() == len(vetting)
        for name in vetting:
            self.states[name] = S.RECEIVED

    @rule()
    def roll_back_to_the_root(self) -> None:
        root, current = self.world.store.root(), self.world.store.current()
        if root != current:
            assert self.world.store.rollback(root.id, "walked back").id == root.id
        else:
            with pytest.raises(LedgerError):
                self.world.store.rollback(root.id, "")

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        assert {one.id: one.state for one in self.world.store.submissions()} == self.states

    @invariant()
    def the_ledger_verifies(self) -> None:
        report = self.world.store.verify()
        assert report.problems == []

    @invariant()
    def the_counter_never_falls(self) -> None:
        counter = self.world.store.change_counter()
        assert counter >= self.counter
        self.counter = counter


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=5, stateful_step_count=16, deadline=None, derandomize=True)
