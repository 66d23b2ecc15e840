"""Where the trials of a study are kept: an SQLite file, a journal file on a shared disk, or a database server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from actsearch.errors import ActsearchError, MissingPackageError, RunError, SettingsError, without_passwords

JOURNAL = "journal:"
BUSY = 60.0  # seconds that a worker waits for another one's write to an SQLite file
LINE = b'{"op_code"'  # how each line of a journal begins
ATTEMPTS = 5  # at opening: two workers that make the tables at the same time disturb each other once
CONNECTING = 10  # seconds that a server may take to answer, before it counts as out of reach
OUTAGE = 6  # attempts to reach the storage of a study that has begun: half a minute

Result = TypeVar("Result")

PASSING = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.ProgrammingError,
    sqlalchemy.exc.IntegrityError,
    StorageInternalError,
)
# What a database says whose content is not what Optuna wrote, and will not be by waiting.
LASTING = (sqlalchemy.exc.DataError, sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.NotSupportedError)
# What Optuna makes of such content, in rows or in lines.
NONSENSE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RecursionError)


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
                f"postgresql://USER@HOST/DATABASE, not {_hidden(text)}"
            )
        if text.partition("?")[0].count("@") > 1:  # the end of the password would be taken for the host, and printed
            raise SettingsError("--storage: write @ in a password as %40, and / as %2F")
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
    """`url` without its password; of what is none, and holds an @, no more than the beginning, whatever it is."""
    try:
        return without_passwords(sqlalchemy.make_url(url).render_as_string(hide_password=True))
    except (sqlalchemy.exc.ArgumentError, ValueError):
        start, colon, rest = url.partition(":")
        return repr(f"{start}:…" if colon and "@" in rest else url)


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
    except NONSENSE as error:
        raise RunError(f"{place} is damaged, or no study: {_first_line(error)}; give another --storage") from None


def close(storage: BaseStorage) -> None:
    """Close its connections; the last one to an SQLite file writes the log beside it into it."""
    storage.remove_session()
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def patiently(action: Callable[[], Result]) -> Result:
    """`action()`, which reads or writes a study; again after a while where the storage cannot be reached.

    Raises RunError, in one line, if that lasts, and at once if what is there is damaged. That a trial is finished
    (UpdateFinishedTrialError) is for the caller.
    """
    attempt = 0
    while True:
        try:
            return action()
        except ActsearchError:
            raise
        except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            attempt += 1
            if _is_lasting(error):
                raise _damaged(error) from None
            if attempt >= OUTAGE:
                raise RunError(f"the study's storage cannot be reached: {_first_line(error)}") from None
            time.sleep(2.0**attempt / 2)
        except NONSENSE as error:
            raise _damaged(error) from None


def _is_lasting(error: BaseException) -> bool:
    reason = error.__cause__ or error
    # SQLite says no more than that of a file which is broken.
    plain = type(reason) is sqlalchemy.exc.DatabaseError
    return (plain or isinstance(reason, LASTING)) and not getattr(reason, "connection_invalidated", False)


def _damaged(error: BaseException) -> RunError:
    return RunError(
        f"the study's storage is damaged, or the study was deleted: {_first_line(error)}; restore it, or begin another "
        "study with --storage and --name"
    )


def _journal(file: str, grace: float) -> BaseStorage:
    # A worker that is killed while it writes leaves its lock; others must break it before they seem dead themselves.
    lock = JournalFileSymlinkLock(file, grace_period=max(3, int(grace / 3)))
    backend = _Journal(file, lock_obj=lock)
    backend.append_logs([])
    return JournalStorage(backend)


class _Journal(JournalFileBackend):
    """A journal that a full disk or a worker killed while it wrote leaves whole, for the workers that go on.

    Optuna's own leaves the beginning of a line there, which spoils the next one and with it the file.
    """

    def __init__(self, file: str, lock_obj: JournalFileSymlinkLock) -> None:
        super().__init__(file, lock_obj=lock_obj)
        self._path, self._own_lock = file, lock_obj

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write `logs`, one a line, or nothing. Raises OSError."""
        data = memoryview(b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs))
        self._own_lock.acquire()
        try:
            with open(self._path, "rb+", buffering=0) as journal:  # must be there: a new one would be another study
                length = _mend(journal)
                try:
                    while data:
                        data = data[journal.write(data) :]
                    os.fsync(journal.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        journal.truncate(length)
                    raise
        finally:
            with contextlib.suppress(RuntimeError):  # it was suspended for so long that others broke its lock
                self._own_lock.release()


def _mend(journal: BinaryIO) -> int:
    """Cut off a last line that was left unfinished; the length of the file, at whose end it then is."""
    size = journal.seek(0, os.SEEK_END)
    journal.seek(max(0, size - 1))
    if size == 0 or journal.read(1) == b"\n":
        return size
    journal.seek(0)
    content = journal.read()
    if content[: len(LINE)] != LINE[: len(content)]:
        raise ValueError("it is not a journal of Optuna")
    length = content.rfind(b"\n") + 1
    journal.truncate(length)
    return journal.seek(length)


def _database(place: Place) -> BaseStorage:
    is_sqlite = place.url.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": BUSY}} if is_sqlite else {"pool_pre_ping": True}
    url = sqlalchemy.make_url(place.url)
    if url.get_backend_name() == "postgresql" and "connect_timeout" not in url.query:
        options["connect_args"] = {"connect_timeout": CONNECTING}
    for attempt in range(ATTEMPTS):
        try:
            storage = RDBStorage(place.url, engine_kwargs=options)
            break
        except ImportError:
            dialect = place.url.partition(":")[0]
            raise SettingsError(f"--storage: no driver of {dialect} is installed; install one with pip") from None
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
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
    reason = error.__cause__ or error
    origin = getattr(reason, "orig", None) or reason
    return without_passwords(" ".join(str(origin).split()) or type(origin).__name__)[:300]
