//! Tables of the ledger.

use std::time::Duration;

use rusqlite::Connection;

/// Of the tables below; written into the file.
pub(super) const VERSION: i64 = 1;

const TABLES: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS calls (
        call INTEGER PRIMARY KEY,
        request BLOB NOT NULL,
        prompt TEXT NOT NULL,
        sample INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        stage TEXT NOT NULL,
        teacher TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('in_flight', 'done', 'failed', 'refused', 'unknown')),
        sent_unix_ms INTEGER NOT NULL,
        ended_unix_ms INTEGER,
        status INTEGER,
        fault TEXT,
        model TEXT,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        usd REAL NOT NULL DEFAULT 0,
        estimated INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX IF NOT EXISTS calls_by_request ON calls (request);
    CREATE UNIQUE INDEX IF NOT EXISTS bought_once ON calls (request) WHERE state = 'done';
    CREATE INDEX IF NOT EXISTS open_calls ON calls (call) WHERE state = 'in_flight';
    CREATE TABLE IF NOT EXISTS receipts (call INTEGER PRIMARY KEY REFERENCES calls, body BLOB NOT NULL) STRICT;
    CREATE VIEW IF NOT EXISTS spend AS
        SELECT teacher, stage, date(sent_unix_ms / 1000, 'unixepoch') AS day, state, count(*) AS calls,
               sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
               sum(usd) AS usd, sum(CASE estimated WHEN 1 THEN usd ELSE 0 END) AS estimated_usd
        FROM calls GROUP BY teacher, stage, day, state;
    COMMIT;
";

/// Added to the tables above, which ledgers of the first programs do not have it beside: whoever reads them may go without.
const WAITS: &str = "
    CREATE TABLE IF NOT EXISTS waits (endpoint TEXT PRIMARY KEY, until_unix_ms INTEGER NOT NULL) STRICT;
";

/// Sets the file up for one writer whose commits survive a power cut, and makes the tables.
pub(super) fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    // Answers a row, which `execute_batch` does not expect.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF;")?;
    if version(connection)? == 0 {
        connection.execute_batch(TABLES)?;
        connection.execute_batch(&format!("PRAGMA user_version = {VERSION};"))?;
    }
    connection.execute_batch(WAITS)
}

pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}
