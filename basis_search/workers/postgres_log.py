"""Evaluations and leases of runs in a PostgreSQL database, shared by workers on any machines."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from basis_search.errors import BadInput
from basis_search.evaluation.candidate import Evaluation
from basis_search.workers.evaluation_log import Record, json_value, parse
from basis_search.workers.leases import Leases
from basis_search.workers.postgres import Database
from basis_search.workers.shared_state import State, check, empty

TABLES = """
CREATE TABLE IF NOT EXISTS basis_search_evaluations (
    id bigserial PRIMARY KEY, run text NOT NULL, key text NOT NULL, body text NOT NULL, UNIQUE (run, key));
CREATE INDEX IF NOT EXISTS basis_search_evaluations_key ON basis_search_evaluations (key);
CREATE TABLE IF NOT EXISTS basis_search_runs (run text PRIMARY KEY, board text NOT NULL)
"""


class DatabaseRecord(Record):
    """A run's evaluations in a database; those of other runs there are its cache.

    Args:
        database: the connection.
        run: the run's name; workers that give the same name work on the same run.
        mirror: a JSON-lines file that gets each of the run's lines as well, for readers of the run folder.
    """

    def __init__(self, database: Database, run: str, mirror: Path | None = None):
        self.run, self._database = run, database
        self._mirror = None if mirror is None else Record(mirror)
        with database.exclusive("tables"):
            database.transaction(lambda c: c.execute(TABLES))
        super().__init__()
        if self._mirror is not None:
            self.fitted = self._mirror.fitted
        self.leases = self.claims = Leases(DatabaseState(database, run))

    def __reduce__(self) -> tuple[Any, ...]:
        mirror = None if self._mirror is None else self._mirror.path
        return DatabaseRecord, (self._database, self.run, mirror), {"fitted": self.fitted}

    def cached(self, key: str, layer_hash: str) -> Evaluation | None:
        """The evaluation that another run in this database stored under that key; failures are not shared."""
        query = "SELECT body FROM basis_search_evaluations WHERE key = %s"
        for (body,) in self._database.transaction(lambda c: c.execute(query, (key,)).fetchall()):
            evaluation = self._evaluation(body, f"the evaluation {key[:12]}...")
            if evaluation.failure is None:
                return evaluation
        return None

    def refresh(self) -> None:
        """Reads the evaluations that other workers have added since."""
        query = "SELECT id, body FROM basis_search_evaluations WHERE run = %s AND id > %s ORDER BY id"
        rows = self._database.transaction(lambda c: c.execute(query, (self.run, self._position)).fetchall())
        for number, body in rows:
            evaluation = self._evaluation(body, f"row {number} of basis_search_evaluations")
            self._keep(evaluation)
            self._copy_to_mirror(evaluation, body)
            self._position = number

    def _evaluation(self, body: str, place: str) -> Evaluation:
        try:
            return Evaluation.from_json(json_value(body))
        except BadInput as problem:
            raise BadInput(f"{self._database.name}, {place}: {problem}") from problem

    def _store(self, evaluation: Evaluation, text: str) -> bool:
        def insert(cursor: Any) -> bool:
            # One insertion at a time per run, so that numbers appear in order and `refresh` misses none.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"basis_search run {self.run}",))
            cursor.execute(
                "INSERT INTO basis_search_evaluations (run, key, body) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (self.run, evaluation.key, text),
            )
            return bool(cursor.rowcount == 1)

        new = self._database.transaction(insert)
        self._copy_to_mirror(evaluation, text)
        return new

    def _copy_to_mirror(self, evaluation: Evaluation, text: str) -> None:
        if self._mirror is not None:
            self._mirror.add_text(evaluation, text)


class DatabaseState:
    """The state that a run's workers share: one row, changed by one transaction at a time."""

    def __init__(self, database: Database, run: str):
        self._database, self._run = database, run
        row = "INSERT INTO basis_search_runs (run, board) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        database.transaction(lambda c: c.execute(row, (run, json.dumps(empty()))))

    def edit(self, change: Callable[[State], Any]) -> Any:
        """change(state); its changes are stored on return.

        Raises:
            BadInput: the database stays away.
        """

        def once(cursor: Any) -> Any:
            # Leases matter to living workers alone: losing the last of them with the server's power costs nothing.
            cursor.execute("SET LOCAL synchronous_commit = off")
            cursor.execute("SELECT board FROM basis_search_runs WHERE run = %s FOR UPDATE", (self._run,))
            state = self._state(cursor.fetchone()[0])
            before = copy.deepcopy(state)
            result = change(state)
            if state != before:
                cursor.execute("UPDATE basis_search_runs SET board = %s WHERE run = %s", (json.dumps(state), self._run))
            return result

        return self._database.transaction(once)

    def _state(self, text: str) -> State:
        place = f"{self._database.name}, run {self._run!r} of basis_search_runs"
        state: State = parse(text, place)
        check(state, place)
        return state
