"""Where the trials of a study are kept: an SQLite file, a journal file on a shared disk, or a database server."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from actsearch.errors import MissingPackageError, RunError, SettingsError

JOURNAL = "journal:"
BUSY = 60.0  # seconds that a worker waits for another one's write to an SQLite file
LINE = b'{"op_code"'  # how each line of a journal begins
ATTEMPTS = 5  # at opening: two workers that make the tables at the same time disturb each other once


PASSING = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.ProgrammingError,
    sqlalchemy.exc.IntegrityError,
    optuna.exceptions.StorageInternalError,
)


@dataclass(frozen=True)
class Place:
    """What `--storage` means.

    Attributes:
        url: of a database, for SQLAlchemy; empty for a journal file.
        file: of a journal, or of SQLite.
    """

    url: str = ""
    file: Path | None = None

    @classmethod
    def of(cls, text: str | None, directory: Path) -> Place:
        """What `text` means: nothing (`directory`/study.db), journal:PATH, *.log, *.db, or the URL of a database.

        Raises SettingsError for anything else, and MissingPackageError for PostgreSQL without a driver.
        """
        if text is None:
            return cls._sqlite(directory / "study.db")
        if text.startswith(JOURNAL) and text != JOURNAL:
            return cls(file=Path(text.removeprefix(JOURNAL)).expanduser())
        if "://" not in text:
            if text.endswith(".log"):
                return cls(file=Path(text).expanduser())
            if text.endswith(".db"):
                return cls._sqlite(Path(text).expanduser())
            raise SettingsError(
                "--storage takes journal:PATH, a file *.log or *.db, or a URL such as "
                f"postgresql://USER@HOST/DATABASE, not {text!r}"
            )
        try:
            url = sqlalchemy.make_url(text)
        except (sqlalchemy.exc.ArgumentError, ValueError):
            raise SettingsError(f"--storage: {_hidden(text)} is not a URL of a database") from None
        if url.drivername == "sqlite" and url.database:
            return cls._sqlite(Path(url.database))
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername=f"postgresql+{_postgresql_driver()}")
        elif url.drivername == "postgresql+psycopg" and importlib.util.find_spec("psycopg") is None:
            raise MissingPackageError("psycopg", "postgresql", "a study on PostgreSQL")
        return cls(url.render_as_string(hide_password=False))

    @classmethod
    def _sqlite(cls, file: Path) -> Place:
        return cls(f"sqlite:///{file}", file)

    def __str__(self) -> str:
        """As optuna-dashboard takes it, without the password."""
        return _hidden(self.url) if self.url else str(self.file)


def _hidden(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return repr(url.partition("://")[0] + "://…")


def _postgresql_driver() -> str:
    for driver in ("psycopg", "psycopg2"):
        if importlib.util.find_spec(driver) is not None:
            return driver
    raise MissingPackageError("psycopg", "postgresql", "a study on PostgreSQL")


def open_storage(place: Place, grace: float) -> BaseStorage:
    """The storage at `place`, made if it is not there. `grace`: see Plan.

    Raises RunError, in one line, if it cannot be reached, written or read, and SettingsError for a missing driver.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        if place.file is not None:
            place.file.parent.mkdir(parents=True, exist_ok=True)
        if not place.url:
            return _journal(str(place.file), grace)
        return _database(place)
    except OSError as error:
        raise RunError(f"cannot open the study's storage {place}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # what Optuna makes of other lines than its own
        raise RunError(f"{place} is damaged, or no study: {_first_line(error)}; give another --storage") from None


def _journal(file: str, grace: float) -> BaseStorage:
    # A worker that is killed while it writes leaves its lock; others must break it before they seem dead themselves.
    lock = JournalFileSymlinkLock(file, grace_period=max(3, int(grace / 3)))
    backend = JournalFileBackend(file, lock_obj=lock)
    _mend(Path(file), lock)
    return JournalStorage(backend)


def _mend(file: Path, lock: Any) -> None:
    """Cut off a last line that a full disk or a crash left unfinished; it would spoil the next one."""
    lock.acquire()
    try:
        with open(file, "rb+") as journal:
            size = journal.seek(0, os.SEEK_END)
            journal.seek(max(0, size - 1))
            if size == 0 or journal.read(1) == b"\n":
                return
            journal.seek(0)
            content = journal.read()
            if content[: len(LINE)] != LINE[: len(content)]:
                raise ValueError("it is not a journal of Optuna")
            whole = content.rpartition(b"\n")[0]
            journal.truncate(len(whole) + bool(whole))
    finally:
        lock.release()


def _database(place: Place) -> BaseStorage:
    is_sqlite = place.url.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY}} if is_sqlite else {"pool_pre_ping": True}
    for attempt in range(ATTEMPTS):
        try:
            storage = RDBStorage(place.url, engine_kwargs=options)
            break
        except ImportError:
            dialect = place.url.partition(":")[0]
            raise SettingsError(f"--storage: no driver of {dialect} is installed; install one with pip") from None
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            if attempt == ATTEMPTS - 1 or not isinstance(error, PASSING):
                raise RunError(f"cannot open the study's storage {place}: {_first_line(error)}") from None
            time.sleep(0.2 * 2**attempt)
    if is_sqlite:
        try:
            _write_in_turn(storage)
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise RunError(f"cannot open the study's storage {place}: {_first_line(error)}") from None
    return storage


def _write_in_turn(storage: RDBStorage) -> None:
    """Let each transaction take the file's lock when it begins, and wait for the disk less often.

    SQLite ignores SELECT … FOR UPDATE, by which Optuna keeps two workers from taking the same trial. A write-ahead log
    survives the death of any process; what a power failure takes is run again.
    """
    engine = storage.engine

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        connection.execute("PRAGMA synchronous = NORMAL")

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", connect)
    storage.remove_session()
    engine.dispose()  # those that were opened before know nothing of it
    with engine.connect() as connection:
        _in_turn(lambda: connection.exec_driver_sql("PRAGMA journal_mode = WAL"))
    sqlalchemy.event.listen(engine, "begin", begin)


def _in_turn(action: Callable[[], Any]) -> None:
    """`action()`, again while another worker holds the file; here SQLite itself does not wait."""
    end = time.monotonic() + BUSY
    while True:
        try:
            action()
            return
        except sqlalchemy.exc.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _first_line(error: BaseException) -> str:
    origin = getattr(error, "orig", None) or error.__cause__ or error
    return (" ".join(str(origin).split()) or type(origin).__name__)[:300]
