CREATE TABLE counter (
    upto BIGINT NOT NULL,
    PRIMARY KEY (upto)
);
CREATE TABLE cursors (
    reader TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (reader)
);
CREATE TABLE destination_events (
    id INTEGER NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (path)
);
CREATE TABLE edits (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (destination, seq)
) WITHOUT ROWID;
CREATE TABLE epochs (
    first_seq BIGINT NOT NULL,
    epoch TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    PRIMARY KEY (first_seq)
);
CREATE TABLE event_totals (
    event_type INTEGER NOT NULL,
    day DATE NOT NULL,
    events BIGINT NOT NULL,
    PRIMARY KEY (event_type, day)
);
CREATE TABLE event_types (
    id INTEGER NOT NULL,
    path TEXT NOT NULL,
    purged_upto BIGINT DEFAULT '0' NOT NULL,
    purged_before BIGINT,
    swept_upto BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (path)
);
CREATE TABLE events (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    event_type INTEGER NOT NULL,
    received_at BIGINT NOT NULL,
    payload TEXT NOT NULL,
    "key" TEXT,
    context TEXT,
    version TEXT,
    sent_at BIGINT,
    parent BIGINT
);
CREATE TABLE fencing_tokens (
    destination INTEGER NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('load', 'discard', 'replay')),
    token BIGINT NOT NULL,
    holder TEXT NOT NULL,
    PRIMARY KEY (destination, lane)
);
CREATE TABLE group_jobs (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    listing BIGINT NOT NULL,
    created BOOLEAN NOT NULL,
    when_error TEXT,
    PRIMARY KEY (destination, seq, listing)
) WITHOUT ROWID;
CREATE TABLE job_groups (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    destination INTEGER NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('load', 'discard', 'replay')),
    replay BIGINT,
    job_key TEXT,
    listing BIGINT,
    seq_from BIGINT NOT NULL,
    seq_to BIGINT NOT NULL,
    jobs INTEGER NOT NULL,
    attempts SMALLINT NOT NULL,
    lost_loads SMALLINT NOT NULL,
    raised_in BIGINT,
    isolated BOOLEAN NOT NULL,
    consecutive_failures SMALLINT NOT NULL,
    split_from BIGINT,
    due_at BIGINT NOT NULL,
    discard_reason TEXT,
    load BIGINT
);
CREATE INDEX job_groups_due ON job_groups (destination, lane, due_at) WHERE load is null;
CREATE INDEX job_groups_load ON job_groups (load) WHERE load is not null;
CREATE INDEX job_groups_range ON job_groups (destination, seq_to);
CREATE INDEX job_groups_replay ON job_groups (replay) WHERE replay is not null;
CREATE TABLE job_totals (
    destination INTEGER NOT NULL,
    jobs BIGINT NOT NULL,
    purged_discarded BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (destination)
);
CREATE TABLE jobs (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    when_error TEXT,
    PRIMARY KEY (destination, seq)
) WITHOUT ROWID;
CREATE TABLE keys (
    event_type INTEGER NOT NULL,
    "key" TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    digest BLOB NOT NULL,
    seq BIGINT,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (event_type, "key", ordinal)
) WITHOUT ROWID;
CREATE INDEX keys_received_at ON keys (received_at);
CREATE TABLE leases (
    "key" TEXT NOT NULL,
    id TEXT NOT NULL,
    holder TEXT NOT NULL,
    since BIGINT NOT NULL,
    expires_at FLOAT NOT NULL,
    boot TEXT,
    address TEXT,
    PRIMARY KEY ("key")
);
CREATE TABLE listeners (
    path TEXT NOT NULL,
    holder TEXT NOT NULL,
    lag BIGINT,
    unit TEXT NOT NULL,
    read_at BIGINT,
    error TEXT,
    at BIGINT NOT NULL,
    PRIMARY KEY (path)
);
CREATE TABLE loads (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    destination INTEGER NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('load', 'discard', 'replay')),
    state TEXT NOT NULL CHECK (state IN ('executing', 'succeeded', 'failed', 'unknown', 'released')),
    token BIGINT NOT NULL,
    attempt SMALLINT NOT NULL,
    seq_from BIGINT,
    seq_to BIGINT,
    jobs INTEGER NOT NULL,
    discarded INTEGER DEFAULT '0' NOT NULL,
    position BIGINT NOT NULL,
    claimed BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    run TEXT,
    error TEXT
);
CREATE INDEX loads_discarded ON loads (destination) WHERE discarded > 0;
CREATE INDEX loads_lane ON loads (destination, lane, id);
CREATE INDEX loads_range ON loads (destination, seq_to) WHERE seq_to is not null;
CREATE TABLE migration_barriers (
    target TEXT NOT NULL,
    token BIGINT NOT NULL,
    holder TEXT NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    migrating_by TEXT,
    waits_for TEXT,
    PRIMARY KEY (target)
);
CREATE TABLE migration_transitions (
    id INTEGER NOT NULL,
    migration BIGINT NOT NULL,
    state TEXT NOT NULL,
    token BIGINT NOT NULL,
    at BIGINT NOT NULL,
    "by" TEXT NOT NULL,
    run TEXT,
    error TEXT,
    PRIMARY KEY (id)
);
CREATE INDEX migration_transitions_migration ON migration_transitions (migration, id);
CREATE TABLE migrations (
    id INTEGER NOT NULL,
    scope TEXT NOT NULL,
    version BIGINT NOT NULL,
    name TEXT NOT NULL,
    checksum TEXT,
    state TEXT NOT NULL,
    atomic BOOLEAN NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (scope, version)
);
CREATE TABLE outcomes (
    load BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    destination INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('failed', 'discarded', 'replayed')),
    error TEXT NOT NULL,
    listing BIGINT,
    PRIMARY KEY (load, seq)
) WITHOUT ROWID;
CREATE INDEX outcomes_discarded ON outcomes (destination, seq) WHERE state = 'discarded';
CREATE INDEX outcomes_listing ON outcomes (listing, seq) WHERE listing is not null;
CREATE TABLE quarantine (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    event_type INTEGER NOT NULL,
    received_at BIGINT NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    error TEXT NOT NULL,
    "key" TEXT
);
CREATE UNIQUE INDEX quarantine_key ON quarantine (event_type, "key");
CREATE TABLE replays (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    destination INTEGER NOT NULL,
    request TEXT NOT NULL,
    "after" BIGINT NOT NULL,
    upto BIGINT NOT NULL,
    planned_upto BIGINT NOT NULL,
    jobs BIGINT NOT NULL,
    created_jobs BIGINT NOT NULL,
    began_at BIGINT NOT NULL,
    ended_at BIGINT,
    run TEXT
);
CREATE INDEX replays_destination ON replays (destination);
CREATE TABLE services (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT NOT NULL,
    tags TEXT NOT NULL,
    expires_at FLOAT NOT NULL,
    boot TEXT,
    PRIMARY KEY (id)
);
CREATE TABLE time_index (
    at BIGINT NOT NULL,
    low BIGINT NOT NULL,
    high BIGINT NOT NULL,
    PRIMARY KEY (at)
) WITHOUT ROWID;
