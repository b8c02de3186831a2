"""The tables of the record, as data: one list of statements per version, for both databases.

SQLite is the default and PostgreSQL speaks almost the same SQL; every word they do not
share stands in :class:`Dialect`. A migration is never changed once released: append one.
Knows nothing of connections.
"""
# ruff: noqa: S608  # every piece of SQL here is a constant of ours; values are always bound

import re
from dataclasses import dataclass
from typing import Any

#: A row of a table as both drivers give it: column -> value.
Row = dict[str, Any]

#: The ready jobs, as their own index has them. Without the hint SQLite prefers the index of the
#: lists and sorts the whole backlog for each claim: a second at a million rows.
READY = "INDEXED BY jobs_ready WHERE state = 'queued' AND held IS NULL"

#: What went wrong and nobody has dismissed, as the index of each table has it.
AMISS = {
    "jobs": "state = 'failed' AND dismissed = 0",
    "batches": "(error IS NOT NULL OR refused_rows > 0) AND dismissed = 0",
}

#: ``PRAGMA application_id`` of our files ("STDY"), so that a foreign one is recognised.
APPLICATION_ID = 0x53544459


@dataclass(frozen=True)
class Dialect:
    """The words in which the two databases differ."""

    name: str
    serial: str  #: a growing integer primary key that is never used twice
    integer: str  #: 64 bits
    real: str  #: 64 bits
    key: str  #: text compared byte by byte
    each: str  #: the members of the JSON list of strings bound as {0}, as a subselect
    mark: str  #: stands for a value bound by its place
    begin: str  #: makes this transaction the only writing one until it ends
    plain_table: str  #: ends a table that has no rowid
    own: tuple[tuple[str, ...], ...]  #: what only it has, per version


# Counting: job_counts for the whole record, n_<state> in each batch. By triggers, so that no
# statement that changes or deletes jobs, ours or a person's with a SQL shell, makes the figures
# wrong. The one statement that inserts jobs counts for itself: it knows how many there are, and
# a trigger's run for each row is a quarter of the time a long file takes.
_STATES = ("queued", "generating", "completed", "failed", "cancelled")


def _sqlite_triggers() -> tuple[str, ...]:
    less = ", ".join(f"n_{s} = n_{s} - (OLD.state = '{s}')" for s in _STATES)
    both = ", ".join(f"n_{s} = n_{s} + (NEW.state = '{s}') - (OLD.state = '{s}')" for s in _STATES)
    up = "UPDATE job_counts SET n = n + 1 WHERE state = NEW.state;"
    down = "UPDATE job_counts SET n = n - 1 WHERE state = OLD.state;"
    return (
        f"""CREATE TRIGGER jobs_counted_out AFTER DELETE ON jobs BEGIN {down}
            UPDATE batches SET {less} WHERE ticket = OLD.ticket; END""",
        f"""CREATE TRIGGER jobs_counted_over AFTER UPDATE OF state ON jobs
            WHEN OLD.state <> NEW.state BEGIN {down} {up}
            UPDATE batches SET {both} WHERE ticket = NEW.ticket; END""",
    )


def _postgres_triggers() -> tuple[str, ...]:
    # Per statement, over the transition tables: one counter updated 2,000 times in one
    # transaction would leave 2,000 dead versions of it.
    per_batch = ", ".join(f"n_{s} = n_{s} + d.{s}" for s in _STATES)
    sums = ", ".join(f"sum(CASE WHEN state = '{s}' THEN k ELSE 0 END) AS {s}" for s in _STATES)
    more = "SELECT ticket, state, 1 AS k FROM fresh"
    less = "SELECT ticket, state, -1 AS k FROM gone"
    fresh, gone = "NEW TABLE AS fresh", "OLD TABLE AS gone"
    statements: list[str] = []
    for name, event, tables, delta in (
        ("out", "DELETE", gone, less),
        ("over", "UPDATE", f"{gone} {fresh}", f"{more} UNION ALL {less}"),
    ):
        statements += (
            f"""CREATE FUNCTION jobs_counted_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                UPDATE job_counts AS c SET n = n + d.k
                  FROM (SELECT state, sum(k) AS k FROM ({delta}) AS x GROUP BY 1) AS d
                  WHERE c.state = d.state AND d.k <> 0;
                UPDATE batches AS b SET {per_batch}
                  FROM (SELECT ticket, {sums} FROM ({delta}) AS x GROUP BY 1) AS d
                  WHERE b.ticket = d.ticket;
                RETURN NULL; END $$""",
            f"""CREATE TRIGGER jobs_counted_{name} AFTER {event} ON jobs REFERENCING {tables}
                FOR EACH STATEMENT EXECUTE FUNCTION jobs_counted_{name}()""",
        )
    return tuple(statements)


# How watchers are just now, for doors on other machines; worth nothing after a crash.
_PULSES = """CREATE UNLOGGED TABLE pulses (who TEXT COLLATE "C" PRIMARY KEY,
    at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL) WITH (fillfactor = 50)"""


_VERSION_1 = (
    "CREATE TABLE settings (key {key} PRIMARY KEY, value TEXT NOT NULL)",
    # One row: the last rev given out; claims of better classes since bulk last had its turn;
    # the virtual time of the bulk class (rank of the last bulk job that was claimed).
    """CREATE TABLE queue (one {integer} PRIMARY KEY CHECK (one = 1), rev {integer} NOT NULL,
        streak {integer} NOT NULL, bulk_time {real} NOT NULL)""",
    "INSERT INTO queue VALUES (1, 0, 0, 0)",
    "CREATE TABLE job_counts (state {key} PRIMARY KEY, n {integer} NOT NULL)",
    "INSERT INTO job_counts VALUES ('queued', 0), ('generating', 0), ('completed', 0),"
    " ('failed', 0), ('cancelled', 0)",
    """CREATE TABLE batches (
        seq {serial},
        ticket {key} NOT NULL UNIQUE,
        claim {key} UNIQUE,
        name TEXT NOT NULL,
        suffix TEXT NOT NULL,
        source TEXT NOT NULL,
        created_at {integer} NOT NULL,
        digest TEXT,
        key TEXT,
        image_name TEXT,
        folder TEXT,
        tries {integer} NOT NULL DEFAULT 0,
        next_line {integer} NOT NULL DEFAULT 0,
        refused_rows {integer} NOT NULL DEFAULT 0,
        last_rank {real} NOT NULL DEFAULT 0,
        recorded_at {integer},
        cancelled {integer} NOT NULL DEFAULT 0,
        paused {integer} NOT NULL DEFAULT 0,
        archived {integer} NOT NULL DEFAULT 0,
        error TEXT,
        warnings TEXT NOT NULL DEFAULT '[]',
        n_queued {integer} NOT NULL DEFAULT 0,
        n_generating {integer} NOT NULL DEFAULT 0,
        n_completed {integer} NOT NULL DEFAULT 0,
        n_failed {integer} NOT NULL DEFAULT 0,
        n_cancelled {integer} NOT NULL DEFAULT 0)""",
    "CREATE INDEX batches_unrecorded ON batches (seq) WHERE recorded_at IS NULL",
    """CREATE INDEX batches_unarchived ON batches (seq) WHERE archived = 0
        AND recorded_at IS NOT NULL AND n_queued + n_generating = 0""",
    """CREATE TABLE jobs (
        seq {serial},
        id {key} NOT NULL UNIQUE,
        ticket {key} NOT NULL,
        idx {integer} NOT NULL,
        state {key} NOT NULL CHECK
            (state IN ('queued', 'generating', 'completed', 'failed', 'cancelled')),
        rev {integer} NOT NULL,
        class {integer} NOT NULL,
        rank {real} NOT NULL,
        held TEXT,
        not_before {integer},
        cancel_requested {integer} NOT NULL DEFAULT 0,
        attempt {integer} NOT NULL DEFAULT 0,
        deaths {integer} NOT NULL DEFAULT 0,
        watcher_deaths {integer} NOT NULL DEFAULT 0,
        image_name TEXT NOT NULL,
        folder TEXT NOT NULL,
        path TEXT NOT NULL,
        prompt TEXT NOT NULL,
        request TEXT NOT NULL,
        created_at {integer} NOT NULL,
        started_at {integer},
        completed_at {integer},
        error_code TEXT,
        error_message TEXT,
        sha256 TEXT,
        bytes {integer},
        deleted_at {integer},
        warnings TEXT,
        facts TEXT,
        history TEXT)""",
    """CREATE INDEX jobs_ready ON jobs (class, rank, seq)
        WHERE state = 'queued' AND held IS NULL""",
    "CREATE INDEX jobs_held ON jobs (held, not_before) WHERE state = 'queued' AND held IS NOT NULL",
    "CREATE INDEX jobs_generating ON jobs (seq) WHERE state = 'generating'",
    "CREATE INDEX jobs_by_state ON jobs (state, seq)",
    "CREATE INDEX jobs_by_created ON jobs (created_at, seq)",
    "CREATE UNIQUE INDEX jobs_by_rev ON jobs (rev)",
    "CREATE UNIQUE INDEX jobs_by_place ON jobs (ticket, idx)",
    # Never pruned: a name belongs to one job for ever. folder and folded are casefolded; family
    # is <folder>/<base> (or */<base> for the default names, unique over all folders), and n its
    # number in the family, so the next free number is one index look-up away (the first of a family
    # needs none: it is called as the base, and that is looked up anyway).
    """CREATE TABLE image_names (folded {key} NOT NULL, folder {key} NOT NULL,
        family {key} NOT NULL, n {integer} NOT NULL, job_id {key} NOT NULL,
        PRIMARY KEY (folded, folder)) {plain_table}""",
    "CREATE INDEX image_names_family ON image_names (family, n) WHERE n > 1",
)

# Every column is added without touching a row, so a record of a million jobs opens as fast as a
# small one. What is unknown of jobs recorded before is NULL: ``forwards`` is then computed on read.
_VERSION_2 = (
    "ALTER TABLE jobs ADD COLUMN row {integer}",
    "ALTER TABLE jobs ADD COLUMN model {key} NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN passed_at {integer}",
    """CREATE INDEX jobs_by_model ON jobs (model, class, rank, seq)
        WHERE state = 'queued' AND held IS NULL""",
    # The LoRAs whose files it needs, by name.
    "ALTER TABLE jobs ADD COLUMN loras {key} NOT NULL DEFAULT ''",
    """CREATE INDEX jobs_by_loras ON jobs (loras, model, class, rank, seq)
        WHERE state = 'queued' AND held IS NULL AND loras <> ''""",
    "ALTER TABLE jobs ADD COLUMN forwards {integer}",
    "ALTER TABLE jobs ADD COLUMN rating {integer} NOT NULL DEFAULT 0",
    "CREATE INDEX jobs_rated ON jobs (seq, rating) WHERE rating <> 0",
    "CREATE INDEX jobs_pictured ON jobs (created_at) WHERE state = 'completed'"
    " AND deleted_at IS NULL",
    "ALTER TABLE batches ADD COLUMN axes TEXT",
    # Of a forecast that is made no more: nobody writes it, and nobody asks the index.
    "ALTER TABLE batches ADD COLUMN eta_at {integer}",
    "CREATE INDEX batches_open ON batches (seq) WHERE archived = 0",
    # The job whose picture this one starts from, while that is not made.
    "ALTER TABLE jobs ADD COLUMN awaits {key}",
    "CREATE INDEX jobs_awaiting ON jobs (awaits) WHERE state = 'queued' AND awaits IS NOT NULL",
    # Pictures that the jobs of a batch start from: by what its file calls them, and by content.
    """CREATE TABLE inputs (ticket {key} NOT NULL, name {key} NOT NULL, sha256 {key} NOT NULL,
        PRIMARY KEY (ticket, name, sha256)) {plain_table}""",
    "CREATE INDEX inputs_by_content ON inputs (sha256)",
    # What others are told: written in the transaction of what is told, delivered afterwards.
    # ``body`` is the row of the job or batch as it was then, so every attempt says the same.
    # ``next_at`` is when to try; ``ended_at`` when it was delivered or given up.
    """CREATE TABLE deliveries (
        seq {serial},
        id {key} NOT NULL UNIQUE,
        event TEXT NOT NULL,
        ticket {key} NOT NULL,
        job_id {key},
        endpoint {key} NOT NULL,
        state {key} NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'dead')),
        attempt {integer} NOT NULL DEFAULT 0,
        next_at {integer} NOT NULL,
        created_at {integer} NOT NULL,
        ended_at {integer},
        last_status {integer},
        last_error TEXT,
        body TEXT NOT NULL)""",
    "CREATE INDEX deliveries_queued ON deliveries (endpoint, seq) WHERE state = 'pending'",
    "CREATE INDEX deliveries_in_order ON deliveries (endpoint, job_id, seq) WHERE state = 'pending'",
    "CREATE INDEX deliveries_ended ON deliveries (state, ended_at) WHERE ended_at IS NOT NULL",
    "CREATE INDEX deliveries_of ON deliveries (ticket, endpoint)",
    # Who hears of what: as the settings of the watcher that runs say it.
    """CREATE TABLE listeners (event {key} NOT NULL, endpoint {key} NOT NULL,
        PRIMARY KEY (event, endpoint)) {plain_table}""",
)

_VERSION_3 = (
    # What a job is found by, put here some time after it came; see search.py.
    """CREATE TABLE search (job {integer} PRIMARY KEY, words {key} NOT NULL,
        marks {key} NOT NULL)""",
)

_VERSION_4 = (
    # What a person has dismissed. It stood in a setting; what was dismissed there is told once more.
    "DELETE FROM settings WHERE key = 'dismissed'",
    "ALTER TABLE jobs ADD COLUMN dismissed {integer} NOT NULL DEFAULT 0",
    "ALTER TABLE batches ADD COLUMN dismissed {integer} NOT NULL DEFAULT 0",
    f"CREATE INDEX jobs_amiss ON jobs (seq) WHERE {AMISS['jobs']}",
    f"CREATE INDEX batches_amiss ON batches (seq) WHERE {AMISS['batches']}",
)


def _columns_of_jobs() -> list[str]:
    """The columns of the table ``jobs``, as the statements above make it."""
    made = next(s for s in _VERSION_1 if s.startswith("CREATE TABLE jobs ("))
    added = (re.match(r"ALTER TABLE jobs ADD COLUMN (\w+)", s) for s in _VERSION_2)
    return re.findall(r"^ +(\w+) (?:\{|TEXT)", made, re.MULTILINE) + [m[1] for m in added if m]


# The outbox of jobs, by a trigger: whichever statement of whichever process ended a job, those who
# listen and the address that the job names are told in the same transaction.
_TOLD = "INSERT INTO deliveries (id, event, ticket, job_id, endpoint, next_at, created_at, body)"
_ENDED = "('completed', 'failed', 'cancelled')"


def _sqlite_outbox() -> tuple[str, ...]:
    row = ", ".join(f"'{column}', NEW.{column}" for column in _columns_of_jobs())
    return (
        f"""CREATE TRIGGER jobs_told AFTER UPDATE OF state ON jobs
            WHEN OLD.state <> NEW.state AND NEW.state IN {_ENDED}
                AND (instr(NEW.request, '"webhook"') OR EXISTS (SELECT 1 FROM listeners))
            BEGIN {_TOLD}
            SELECT 'msg_' || lower(hex(randomblob(16))), 'job.' || NEW.state, NEW.ticket, NEW.id,
                endpoint, NEW.completed_at, NEW.completed_at, json_object({row})
            FROM (SELECT endpoint FROM listeners WHERE event = 'job.' || NEW.state
                UNION SELECT json_extract(NEW.request, '$.webhook')) WHERE endpoint IS NOT NULL;
            END""",
    )


def _postgres_outbox() -> tuple[str, ...]:
    return (
        f"""CREATE FUNCTION jobs_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {_TOLD}
            SELECT 'msg_' || replace(CAST(gen_random_uuid() AS text), '-', ''),
                'job.' || n.state, n.ticket, n.id, e.endpoint,
                n.completed_at, n.completed_at, CAST(row_to_json(n) AS text)
            FROM fresh AS n JOIN gone AS o ON o.seq = n.seq CROSS JOIN LATERAL (
                SELECT endpoint FROM listeners WHERE event = 'job.' || n.state
                UNION SELECT CAST(n.request AS json) ->> 'webhook') AS e
            WHERE o.state <> n.state AND n.state IN {_ENDED} AND e.endpoint IS NOT NULL
            ORDER BY n.seq;
            RETURN NULL; END $$""",
        """CREATE TRIGGER jobs_told AFTER UPDATE ON jobs
            REFERENCING OLD TABLE AS gone NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION jobs_told()""",
    )


# The indexes of ``search``: of each three characters of the words, and of whole marks. Without the
# places where they stand, for the row says that: half as many bytes.
_SQLITE_INDEXES = {
    "words": "trigram case_sensitive 1",
    "marks": "ascii tokenchars ''=%_.-~''",
}


def _sqlite_search() -> tuple[str, ...]:
    statements = [
        "CREATE TRIGGER jobs_unsearched AFTER DELETE ON jobs"
        " BEGIN DELETE FROM search WHERE job = OLD.seq; END"
    ]
    for column, tokenizer in _SQLITE_INDEXES.items():
        index = f"search_{column}"
        out = f"INSERT INTO {index} ({index}, rowid, {column}) VALUES ('delete', OLD.job, OLD.{column});"
        in_ = f"INSERT INTO {index} (rowid, {column}) VALUES (NEW.job, NEW.{column});"
        statements += [
            f"CREATE VIRTUAL TABLE {index} USING fts5 ({column}, content = 'search',"
            f" content_rowid = 'job', detail = 'none', tokenize = '{tokenizer}')",
            f"CREATE TRIGGER {index}_in AFTER INSERT ON search BEGIN {in_} END",
            f"CREATE TRIGGER {index}_out AFTER DELETE ON search BEGIN {out} END",
            f"CREATE TRIGGER {index}_over AFTER UPDATE OF {column} ON search BEGIN {out} {in_} END",
        ]
    return tuple(statements)


# The extension comes with every PostgreSQL, and the owner of a database may add it; where that is
# refused, or its package is not there, lists read the table instead. Not in the schema of one record:
# with that it would go, and with it the indexes of all others in the database.
_POSTGRES_SEARCH = (
    "ALTER TABLE search ADD FOREIGN KEY (job) REFERENCES jobs (seq) ON DELETE CASCADE",
    """DO $$ BEGIN CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public;
        EXCEPTION WHEN OTHERS THEN RAISE NOTICE 'no pg_trgm: %', SQLERRM; END $$""",
    """DO $$ DECLARE place text; BEGIN
        SELECT n.nspname INTO place FROM pg_extension AS e
            JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm';
        IF place IS NOT NULL THEN EXECUTE format('CREATE INDEX search_words_marks ON search USING gin'
            ' (words %1$I.gin_trgm_ops, marks %1$I.gin_trgm_ops)', place); END IF; END $$""",
)


SQLITE = Dialect(
    name="sqlite",
    serial="INTEGER PRIMARY KEY AUTOINCREMENT",
    integer="INTEGER",
    real="REAL",
    key="TEXT",
    each="(SELECT value FROM json_each({0}))",
    mark="?",
    begin="BEGIN IMMEDIATE",
    plain_table="WITHOUT ROWID",
    own=(_sqlite_triggers(), _sqlite_outbox(), _sqlite_search(), ()),
)

POSTGRES = Dialect(
    name="postgresql",
    serial="BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    integer="BIGINT",
    real="DOUBLE PRECISION",
    key='TEXT COLLATE "C"',
    each="(SELECT json_array_elements_text(CAST({0} AS json)) AS value)",
    mark="%s",
    begin="SELECT 1 FROM (SELECT pg_advisory_xact_lock(1398031449, hashtext(current_schema())))"
    " AS only_writer",
    plain_table="",
    own=((*_postgres_triggers(), _PULSES), _postgres_outbox(), _POSTGRES_SEARCH, ()),
)

_TABLES = (_VERSION_1, _VERSION_2, _VERSION_3, _VERSION_4)

#: The version this code reads and writes.
VERSION = len(_TABLES)


def migrations(dialect: Dialect) -> list[list[str]]:
    """The statements that lead to version 1, 2, ... in ``dialect``, in order."""
    words = vars(dialect)
    return [
        [statement.format(**words) for statement in tables] + list(own)
        for tables, own in zip(_TABLES, dialect.own, strict=True)
    ]
