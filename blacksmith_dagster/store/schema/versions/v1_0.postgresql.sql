CREATE SEQUENCE event_seq CACHE 1;
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
    id SERIAL NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (path)
);
CREATE TABLE edits (
    destination INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (destination, seq)
);
CREATE TABLE epochs (
    first_seq BIGINT NOT NULL,
    epoch TEXT NOT NULL,
    began_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (first_seq)
);
CREATE TABLE event_totals (
    event_type INTEGER NOT NULL,
    day DATE NOT NULL,
    events BIGINT NOT NULL,
    PRIMARY KEY (event_type, day)
);
CREATE TABLE event_types (
    id SERIAL NOT NULL,
    path TEXT NOT NULL,
    purged_upto BIGINT DEFAULT '0' NOT NULL,
    purged_before TIMESTAMP WITH TIME ZONE,
    swept_upto BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (path)
);
CREATE TABLE events (
    seq BIGINT NOT NULL,
    event_type INTEGER NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    payload TEXT NOT NULL,
    key TEXT,
    context TEXT,
    version TEXT,
    sent_at TIMESTAMP WITH TIME ZONE,
    parent BIGINT,
    PRIMARY KEY (seq)
) PARTITION BY range (seq);
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
);
CREATE TABLE job_groups (
    id BIGSERIAL NOT NULL,
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
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    discard_reason TEXT,
    load BIGINT,
    PRIMARY KEY (id)
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
) PARTITION BY range (seq);
CREATE TABLE keys (
    event_type INTEGER NOT NULL,
    key TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    digest BYTEA NOT NULL,
    seq BIGINT,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (event_type, key, ordinal)
);
CREATE INDEX keys_received_at ON keys (received_at);
CREATE TABLE leases (
    key TEXT NOT NULL,
    id TEXT NOT NULL,
    holder TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    boot TEXT,
    address TEXT,
    PRIMARY KEY (key)
);
CREATE TABLE listeners (
    path TEXT NOT NULL,
    holder TEXT NOT NULL,
    lag BIGINT,
    unit TEXT NOT NULL,
    read_at TIMESTAMP WITH TIME ZONE,
    error TEXT,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (path)
);
CREATE TABLE loads (
    id BIGSERIAL NOT NULL,
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
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    run TEXT,
    error TEXT,
    PRIMARY KEY (id)
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
    id BIGSERIAL NOT NULL,
    migration BIGINT NOT NULL,
    state TEXT NOT NULL,
    token BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    by TEXT NOT NULL,
    run TEXT,
    error TEXT,
    PRIMARY KEY (id)
);
CREATE INDEX migration_transitions_migration ON migration_transitions (migration, id);
CREATE TABLE migrations (
    id BIGSERIAL NOT NULL,
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
);
CREATE INDEX outcomes_discarded ON outcomes (destination, seq) WHERE state = 'discarded';
CREATE INDEX outcomes_listing ON outcomes (listing, seq) WHERE listing is not null;
CREATE TABLE quarantine (
    id BIGSERIAL NOT NULL,
    event_type INTEGER NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    headers TEXT NOT NULL,
    body BYTEA NOT NULL,
    error TEXT NOT NULL,
    key TEXT,
    PRIMARY KEY (id)
);
CREATE UNIQUE INDEX quarantine_key ON quarantine (event_type, key);
CREATE TABLE replays (
    id BIGSERIAL NOT NULL,
    destination INTEGER NOT NULL,
    request TEXT NOT NULL,
    after BIGINT NOT NULL,
    upto BIGINT NOT NULL,
    planned_upto BIGINT NOT NULL,
    jobs BIGINT NOT NULL,
    created_jobs BIGINT NOT NULL,
    began_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    run TEXT,
    PRIMARY KEY (id)
);
CREATE INDEX replays_destination ON replays (destination);
CREATE TABLE services (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT NOT NULL,
    tags TEXT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    boot TEXT,
    PRIMARY KEY (id)
);
CREATE TABLE time_index (
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    low BIGINT NOT NULL,
    high BIGINT NOT NULL,
    PRIMARY KEY (at)
);
-- Room in each page for the update that closes a load.
ALTER TABLE loads SET (fillfactor = 80);
-- The sequence number up to which each event is committed, or never will be. Transactions commit out of
-- the order of their sequence numbers, so a reader that only remembers the highest number would skip
-- events. Reads first the upper bound, and then the lowest key that a running ingest() has locked. The
-- caller must read the events with a new snapshot.
CREATE FUNCTION high_watermark() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    high bigint;
    back bigint;
BEGIN
    SELECT last_value INTO high FROM event_seq;
    -- A key is the low 32 bits of a value, so the distance from `high` gives the value. An ingest that began
    -- after `high` was read has a key above it, which looks like a distance of nearly 2^32: all of its
    -- sequence numbers are above `high` too.
    SELECT max((high - objid::bigint) & 4294967295) INTO back
      FROM pg_locks
     WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 'event_seq'::regclass::oid
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND ((high - objid::bigint) & 4294967295) < 2147483648;
    RETURN high - coalesce(back, 0);
END $$;
-- Locks a lane for this transaction, without writing a new version of its row, and reads its state. Each
-- statement sees what was committed before it began: first the fencing token, then the high watermark,
-- then the rest. `next` is the last of at most `wanted` new jobs, NULL if there is none; only the load
-- lane claims new jobs.
CREATE FUNCTION enter_lane(
    of int, in_lane text, wanted int, OUT token bigint, OUT holder text, OUT now timestamptz,
    OUT last bigint, OUT open boolean, OUT first_claim boolean, OUT at bigint, OUT claimed bigint,
    OUT next bigint, OUT due boolean
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    upto bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE 'a claim needs READ COMMITTED';
    END IF;
    SELECT f.token, f.holder INTO token, holder
      FROM fencing_tokens f WHERE f.destination = of AND f.lane = in_lane FOR NO KEY UPDATE;
    upto := high_watermark();
    now := clock_timestamp();
    SELECT l.id, l.state = 'executing', l.seq_to IS NOT NULL, l.position, l.claimed
      INTO last, open, first_claim, at, claimed
      FROM loads l
     -- A range of the index loads_lane: with equalities, a generic plan walks back through all loads by id.
     WHERE (l.destination, l.lane, l.id) >= (of, in_lane, 0)
       AND (l.destination, l.lane, l.id) <= (of, in_lane, 9223372036854775807)
     ORDER BY l.destination DESC, l.lane DESC, l.id DESC LIMIT 1;
    IF in_lane = 'load' THEN
        SELECT max(n.seq) INTO next FROM (
            SELECT j.seq FROM jobs j
             WHERE j.destination = of AND j.seq > coalesce(at, 0) AND j.seq <= upto
             ORDER BY j.seq LIMIT wanted) n;
    END IF;
    due := EXISTS (
        SELECT FROM job_groups g WHERE g.destination = of AND g.lane = in_lane AND g.load IS NULL
                             AND g.due_at <= now);
END $$;
-- Inserts a group commit. The first seven arrays have one item per event, the others one per job;
-- job_event is the index of the job's event, from 1. A parent is a sequence number, or -n for the n-th
-- event of this commit. Before the first nextval() it takes a shared advisory lock whose key is the
-- sequence's value: all its sequence numbers are above that. `received` is when the events were received,
-- now if NULL.
CREATE FUNCTION ingest(
    event_types int[], payloads text[], event_keys text[], contexts text[], versions text[],
    sent timestamptz[], parents bigint[], job_event int[], job_destination int[], job_error text[],
    received timestamptz DEFAULT NULL
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    made bigint[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(
        'event_seq'::regclass::oid::bigint::bit(32)::int, last_value::bit(32)::int) FROM event_seq;
    SELECT array_agg(nextval('event_seq')) INTO made FROM generate_series(1, cardinality(event_types));
    WITH event AS (
        INSERT INTO events (seq, event_type, received_at, payload, key, context, version, sent_at, parent)
        SELECT seq, event_type, coalesce(received, clock_timestamp()), payload, event_key, context, version,
               sent_at, CASE WHEN parent < 0 THEN made[-parent] ELSE parent END
          FROM unnest(made, event_types, payloads, event_keys, contexts, versions, sent, parents)
               AS t(seq, event_type, payload, event_key, context, version, sent_at, parent))
    INSERT INTO jobs (destination, seq, when_error)
    SELECT j.destination, made[j.n], j.error
      FROM unnest(job_event, job_destination, job_error) AS j(n, destination, error);
    RETURN made;
END $$;
-- Creates the table partitions of events and jobs, from the sequence's current one to two ahead.
CREATE FUNCTION make_partitions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    step CONSTANT bigint := 5000000;
    now_at bigint := (SELECT last_value FROM event_seq) / step;
    part text;
BEGIN
    PERFORM pg_advisory_xact_lock('events'::regclass::oid::bigint::bit(32)::int, 0);
    FOR k IN now_at .. now_at + 2 LOOP
        FOREACH part IN ARRAY ARRAY['events', 'jobs'] LOOP
            CONTINUE WHEN to_regclass(format('%I', part || '_' || k)) IS NOT NULL;
            -- Created first and then attached, so that the parent is locked only for a moment.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part || '_' || k, part);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                           part, part || '_' || k, k * step, (k + 1) * step);
        END LOOP;
    END LOOP;
END $$;
-- Uses up the first number: last_value does not show whether a sequence was ever called.
SELECT nextval('event_seq');
SELECT make_partitions();
