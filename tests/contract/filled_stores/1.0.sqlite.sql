BEGIN TRANSACTION;
CREATE TABLE blacksmith_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT blacksmith_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "blacksmith_version" VALUES('1.0');
CREATE TABLE counter (
    upto BIGINT NOT NULL,
    PRIMARY KEY (upto)
);
INSERT INTO "counter" VALUES(19);
CREATE TABLE cursors (
    reader TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (reader)
);
INSERT INTO "cursors" VALUES('landing','20');
CREATE TABLE destination_events (
    id INTEGER NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (path)
);
INSERT INTO "destination_events" VALUES(1,'warehouse/flights');
INSERT INTO "destination_events" VALUES(2,'warehouse/seats');
INSERT INTO "destination_events" VALUES(3,'warehouse/undeliverable');
CREATE TABLE edits (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (destination, seq)
) WITHOUT ROWID;
INSERT INTO "edits" VALUES(2,7,'{"n": "edited"}');
CREATE TABLE epochs (
    first_seq BIGINT NOT NULL,
    epoch TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    PRIMARY KEY (first_seq)
);
INSERT INTO "epochs" VALUES(0,'e4de8843',1796078307609599);
CREATE TABLE event_totals (
    event_type INTEGER NOT NULL,
    day DATE NOT NULL,
    events BIGINT NOT NULL,
    PRIMARY KEY (event_type, day)
);
INSERT INTO "event_totals" VALUES(1,'2026-01-01',2);
INSERT INTO "event_totals" VALUES(1,'2026-01-02',2);
INSERT INTO "event_totals" VALUES(1,'2026-11-30',14);
INSERT INTO "event_totals" VALUES(2,'2026-11-30',1);
CREATE TABLE event_types (
    id INTEGER NOT NULL,
    path TEXT NOT NULL,
    purged_upto BIGINT DEFAULT '0' NOT NULL,
    purged_before BIGINT,
    swept_upto BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (path)
);
INSERT INTO "event_types" VALUES(1,'airport/departed',2,1767312000000000,2);
INSERT INTO "event_types" VALUES(2,'warehouse/flights.discarded',0,NULL,0);
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
INSERT INTO "events" VALUES(3,1,1767312000000000,'{"day": 2}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(4,1,1767312000000000,'{"day": 2}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(5,1,1796078307718115,'{"n": "keyed"}','first','{"ip": "192.0.2.1"}','2026-01',1767323045678901,NULL);
INSERT INTO "events" VALUES(6,1,1796078307724858,'{"n": "child"}',NULL,NULL,NULL,NULL,5);
INSERT INTO "events" VALUES(7,1,1796078307737185,'{"n":0}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(8,1,1796078307737185,'{"n":1}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(9,1,1796078307737185,'{"n":2}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(10,1,1796078307737185,'{"n":3}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(11,1,1796078307737185,'{"n":4}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(12,1,1796078307737185,'{"n":5}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(13,1,1796078307737185,'{"n":6}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(14,1,1796078307737185,'{"n":7}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(15,1,1796078307737185,'{"n":8}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(16,1,1796078307737185,'{"n":9}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(17,1,1796078307737185,'{"n":10}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(18,1,1796078307737185,'{"n":11}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "events" VALUES(19,2,1796078307822788,'{}',NULL,NULL,NULL,NULL,9);
CREATE TABLE fencing_tokens (
    destination INTEGER NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('load', 'discard', 'replay')),
    token BIGINT NOT NULL,
    holder TEXT NOT NULL,
    PRIMARY KEY (destination, lane)
);
INSERT INTO "fencing_tokens" VALUES(1,'load',2,'another loader');
INSERT INTO "fencing_tokens" VALUES(1,'discard',1,'a person');
INSERT INTO "fencing_tokens" VALUES(1,'replay',0,'');
INSERT INTO "fencing_tokens" VALUES(2,'load',1,'loader');
INSERT INTO "fencing_tokens" VALUES(2,'discard',0,'');
INSERT INTO "fencing_tokens" VALUES(2,'replay',1,'replay');
INSERT INTO "fencing_tokens" VALUES(3,'load',0,'');
INSERT INTO "fencing_tokens" VALUES(3,'discard',0,'');
INSERT INTO "fencing_tokens" VALUES(3,'replay',0,'');
CREATE TABLE group_jobs (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    listing BIGINT NOT NULL,
    created BOOLEAN NOT NULL,
    when_error TEXT,
    PRIMARY KEY (destination, seq, listing)
) WITHOUT ROWID;
INSERT INTO "group_jobs" VALUES(2,5,7,0,NULL);
INSERT INTO "group_jobs" VALUES(2,7,7,0,NULL);
INSERT INTO "group_jobs" VALUES(2,8,8,0,NULL);
INSERT INTO "group_jobs" VALUES(2,9,8,0,NULL);
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
INSERT INTO "job_groups" VALUES(1,1,'load',NULL,NULL,1,8,9,1,1,0,NULL,0,0,NULL,1796078367815210,NULL,NULL);
INSERT INTO "job_groups" VALUES(2,1,'load',NULL,NULL,NULL,12,13,2,1,0,3,0,0,NULL,1796078367844788,NULL,NULL);
INSERT INTO "job_groups" VALUES(3,1,'load',NULL,NULL,NULL,14,14,1,0,0,NULL,0,0,NULL,1796078307872664,NULL,5);
INSERT INTO "job_groups" VALUES(4,1,'load',NULL,NULL,1,10,10,1,1,0,NULL,0,0,1,1796078307909144,'by hand',NULL);
INSERT INTO "job_groups" VALUES(5,1,'load',NULL,NULL,NULL,14,14,1,0,1,NULL,0,0,NULL,1796078307974635,NULL,NULL);
INSERT INTO "job_groups" VALUES(6,2,'load',NULL,NULL,NULL,1,18,13,0,1,NULL,0,0,NULL,1796078308016726,NULL,8);
INSERT INTO "job_groups" VALUES(7,2,'replay',1,'2-1',7,5,7,2,0,0,NULL,0,0,NULL,1796078308120625,NULL,9);
INSERT INTO "job_groups" VALUES(8,2,'replay',1,'2-1',8,8,9,2,0,0,NULL,0,0,NULL,1796078308120625,NULL,NULL);
CREATE TABLE job_totals (
    destination INTEGER NOT NULL,
    jobs BIGINT NOT NULL,
    purged_discarded BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (destination)
);
INSERT INTO "job_totals" VALUES(1,14,0);
INSERT INTO "job_totals" VALUES(2,13,0);
INSERT INTO "job_totals" VALUES(3,1,0);
CREATE TABLE jobs (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    when_error TEXT,
    PRIMARY KEY (destination, seq)
) WITHOUT ROWID;
INSERT INTO "jobs" VALUES(1,5,'ValueError: its `when` raised');
INSERT INTO "jobs" VALUES(1,6,NULL);
INSERT INTO "jobs" VALUES(1,7,NULL);
INSERT INTO "jobs" VALUES(1,8,NULL);
INSERT INTO "jobs" VALUES(1,9,NULL);
INSERT INTO "jobs" VALUES(1,10,NULL);
INSERT INTO "jobs" VALUES(1,11,NULL);
INSERT INTO "jobs" VALUES(1,12,NULL);
INSERT INTO "jobs" VALUES(1,13,NULL);
INSERT INTO "jobs" VALUES(1,14,NULL);
INSERT INTO "jobs" VALUES(1,15,NULL);
INSERT INTO "jobs" VALUES(1,16,NULL);
INSERT INTO "jobs" VALUES(1,17,NULL);
INSERT INTO "jobs" VALUES(1,18,NULL);
INSERT INTO "jobs" VALUES(2,5,NULL);
INSERT INTO "jobs" VALUES(2,7,NULL);
INSERT INTO "jobs" VALUES(2,8,NULL);
INSERT INTO "jobs" VALUES(2,9,NULL);
INSERT INTO "jobs" VALUES(2,10,NULL);
INSERT INTO "jobs" VALUES(2,11,NULL);
INSERT INTO "jobs" VALUES(2,12,NULL);
INSERT INTO "jobs" VALUES(2,13,NULL);
INSERT INTO "jobs" VALUES(2,14,NULL);
INSERT INTO "jobs" VALUES(2,15,NULL);
INSERT INTO "jobs" VALUES(2,16,NULL);
INSERT INTO "jobs" VALUES(2,17,NULL);
INSERT INTO "jobs" VALUES(2,18,NULL);
INSERT INTO "jobs" VALUES(3,19,NULL);
CREATE TABLE keys (
    event_type INTEGER NOT NULL,
    "key" TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    digest BLOB NOT NULL,
    seq BIGINT,
    received_at BIGINT NOT NULL,
    PRIMARY KEY (event_type, "key", ordinal)
) WITHOUT ROWID;
INSERT INTO "keys" VALUES(1,'first',0,X'646967657374',5,1796078307718232);
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
INSERT INTO "leases" VALUES('load/warehouse/flights','killed','a host',1767225600000000,0.0,'','192.0.2.1');
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
INSERT INTO "listeners" VALUES('airport/departed','a host',3,'messages',NULL,'away',1796078307752750);
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
INSERT INTO "loads" VALUES(1,1,'load','succeeded',1,1,1,7,3,0,7,3,1796078307776678,1796078307788717,NULL,NULL);
INSERT INTO "loads" VALUES(2,1,'load','succeeded',1,1,8,11,4,1,11,7,1796078307800623,1796078307815210,NULL,NULL);
INSERT INTO "loads" VALUES(3,1,'load','failed',1,1,12,13,2,0,13,9,1796078307832719,1796078307844788,NULL,'the warehouse is away');
INSERT INTO "loads" VALUES(4,1,'load','released',1,1,14,14,1,0,14,10,1796078307864744,1796078307872664,NULL,NULL);
INSERT INTO "loads" VALUES(5,1,'load','unknown',1,1,NULL,NULL,1,0,14,10,1796078307945719,1796078307974635,NULL,'its loader was lost');
INSERT INTO "loads" VALUES(6,1,'load','executing',2,1,15,15,1,0,15,11,1796078307984970,NULL,NULL,NULL);
INSERT INTO "loads" VALUES(7,2,'load','unknown',1,1,1,18,13,0,18,13,1796078308008717,1796078308016726,NULL,'it took too long');
INSERT INTO "loads" VALUES(8,2,'load','succeeded',1,1,NULL,NULL,13,0,18,13,1796078308020624,1796078308056026,NULL,NULL);
INSERT INTO "loads" VALUES(9,2,'replay','succeeded',1,1,NULL,NULL,2,0,0,0,1796078308158533,1796078308169143,NULL,NULL);
CREATE TABLE migration_barriers (
    target TEXT NOT NULL,
    token BIGINT NOT NULL,
    holder TEXT NOT NULL,
    version BIGINT DEFAULT '0' NOT NULL,
    migrating_by TEXT,
    waits_for TEXT,
    PRIMARY KEY (target)
);
INSERT INTO "migration_barriers" VALUES('destination/lake',1,'cf96170966e1976259d28301c1a4c031',20260101000000,NULL,'20260102000000 two of destination:lake failed(up): ValueError: no such column; fix it, then run `blacksmith migrations run`');
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
INSERT INTO "migration_transitions" VALUES(1,1,'acknowledged',1,1796078308280189,'a person',NULL,NULL);
INSERT INTO "migration_transitions" VALUES(2,1,'executing(up)',1,1796078308304209,'a person',NULL,NULL);
INSERT INTO "migration_transitions" VALUES(3,1,'succeeded(up)',1,1796078308314708,'a person',NULL,NULL);
INSERT INTO "migration_transitions" VALUES(4,2,'acknowledged',1,1796078308324929,'a person',NULL,NULL);
INSERT INTO "migration_transitions" VALUES(5,2,'executing(up)',1,1796078308350079,'a person',NULL,NULL);
INSERT INTO "migration_transitions" VALUES(6,2,'failed(up)',1,1796078308360315,'a person',NULL,'ValueError: no such column');
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
INSERT INTO "migrations" VALUES(1,'destination:lake',20260101000000,'one',NULL,'succeeded(up)',0);
INSERT INTO "migrations" VALUES(2,'destination:lake',20260102000000,'two',NULL,'failed(up)',0);
CREATE TABLE outcomes (
    load BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    destination INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('failed', 'discarded', 'replayed')),
    error TEXT NOT NULL,
    listing BIGINT,
    PRIMARY KEY (load, seq)
) WITHOUT ROWID;
INSERT INTO "outcomes" VALUES(2,8,1,'failed','not yet',1);
INSERT INTO "outcomes" VALUES(2,9,1,'discarded','too late',NULL);
INSERT INTO "outcomes" VALUES(2,10,1,'failed','never',1);
CREATE TABLE quarantine (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    event_type INTEGER NOT NULL,
    received_at BIGINT NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    error TEXT NOT NULL,
    "key" TEXT
);
INSERT INTO "quarantine" VALUES(1,1,1796078307740666,'{"content-type":"text/plain"}',X'FF007B','no JSON','raw');
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
INSERT INTO "replays" VALUES(1,2,'{"start":"2026-11-29T22:38:28.072588Z","end":"2026-12-01T22:38:28.072588Z","modes":["all"],"new_key":true}',2,19,10,4,0,1796078308082852,NULL,'run');
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
INSERT INTO "services" VALUES('killed','blacksmith-gateway','192.0.2.1','0.1.0rc1','',0.0,'');
CREATE TABLE time_index (
    at BIGINT NOT NULL,
    low BIGINT NOT NULL,
    high BIGINT NOT NULL,
    PRIMARY KEY (at)
) WITHOUT ROWID;
INSERT INTO "time_index" VALUES(1767225600000000,0,2);
INSERT INTO "time_index" VALUES(1767312000000000,2,4);
INSERT INTO "time_index" VALUES(1796078307658602,4,4);
CREATE INDEX job_groups_due ON job_groups (destination, lane, due_at) WHERE load is null;
CREATE INDEX job_groups_load ON job_groups (load) WHERE load is not null;
CREATE INDEX job_groups_range ON job_groups (destination, seq_to);
CREATE INDEX job_groups_replay ON job_groups (replay) WHERE replay is not null;
CREATE INDEX keys_received_at ON keys (received_at);
CREATE INDEX loads_discarded ON loads (destination) WHERE discarded > 0;
CREATE INDEX loads_lane ON loads (destination, lane, id);
CREATE INDEX loads_range ON loads (destination, seq_to) WHERE seq_to is not null;
CREATE INDEX migration_transitions_migration ON migration_transitions (migration, id);
CREATE INDEX outcomes_discarded ON outcomes (destination, seq) WHERE state = 'discarded';
CREATE INDEX outcomes_listing ON outcomes (listing, seq) WHERE listing is not null;
CREATE UNIQUE INDEX quarantine_key ON quarantine (event_type, "key");
CREATE INDEX replays_destination ON replays (destination);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',19);
INSERT INTO "sqlite_sequence" VALUES('quarantine',1);
INSERT INTO "sqlite_sequence" VALUES('loads',9);
INSERT INTO "sqlite_sequence" VALUES('job_groups',8);
INSERT INTO "sqlite_sequence" VALUES('replays',1);
COMMIT;
