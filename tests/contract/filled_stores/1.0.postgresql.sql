SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE FUNCTION public.enter_lane(of integer, in_lane text, wanted integer, OUT token bigint, OUT holder text, OUT now timestamp with time zone, OUT last bigint, OUT open boolean, OUT first_claim boolean, OUT at bigint, OUT claimed bigint, OUT next bigint, OUT due boolean) RETURNS record
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION public.high_watermark() RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION public.ingest(event_types integer[], payloads text[], event_keys text[], contexts text[], versions text[], sent timestamp with time zone[], parents bigint[], job_event integer[], job_destination integer[], job_error text[], received timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS bigint[]
    LANGUAGE plpgsql
    AS $$
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
CREATE FUNCTION public.make_partitions() RETURNS void
    LANGUAGE plpgsql
    AS $$
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
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.blacksmith_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.counter (
    upto bigint NOT NULL
);
CREATE TABLE public.cursors (
    reader text NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.destination_events (
    id integer NOT NULL,
    path text NOT NULL
);
CREATE SEQUENCE public.destination_events_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.destination_events_id_seq OWNED BY public.destination_events.id;
CREATE TABLE public.edits (
    destination integer NOT NULL,
    seq bigint NOT NULL,
    payload text NOT NULL
);
CREATE TABLE public.epochs (
    first_seq bigint NOT NULL,
    epoch text NOT NULL,
    began_at timestamp with time zone NOT NULL
);
CREATE SEQUENCE public.event_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE public.event_totals (
    event_type integer NOT NULL,
    day date NOT NULL,
    events bigint NOT NULL
);
CREATE TABLE public.event_types (
    id integer NOT NULL,
    path text NOT NULL,
    purged_upto bigint DEFAULT '0'::bigint NOT NULL,
    purged_before timestamp with time zone,
    swept_upto bigint DEFAULT '0'::bigint NOT NULL
);
CREATE SEQUENCE public.event_types_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.event_types_id_seq OWNED BY public.event_types.id;
CREATE TABLE public.events (
    seq bigint NOT NULL,
    event_type integer NOT NULL,
    received_at timestamp with time zone NOT NULL,
    payload text NOT NULL,
    key text,
    context text,
    version text,
    sent_at timestamp with time zone,
    parent bigint
)
PARTITION BY RANGE (seq);
CREATE TABLE public.events_0 (
    seq bigint NOT NULL,
    event_type integer NOT NULL,
    received_at timestamp with time zone NOT NULL,
    payload text NOT NULL,
    key text,
    context text,
    version text,
    sent_at timestamp with time zone,
    parent bigint
);
CREATE TABLE public.events_1 (
    seq bigint NOT NULL,
    event_type integer NOT NULL,
    received_at timestamp with time zone NOT NULL,
    payload text NOT NULL,
    key text,
    context text,
    version text,
    sent_at timestamp with time zone,
    parent bigint
);
CREATE TABLE public.events_2 (
    seq bigint NOT NULL,
    event_type integer NOT NULL,
    received_at timestamp with time zone NOT NULL,
    payload text NOT NULL,
    key text,
    context text,
    version text,
    sent_at timestamp with time zone,
    parent bigint
);
CREATE TABLE public.fencing_tokens (
    destination integer NOT NULL,
    lane text NOT NULL,
    token bigint NOT NULL,
    holder text NOT NULL,
    CONSTRAINT fencing_tokens_lane_check CHECK ((lane = ANY (ARRAY['load'::text, 'discard'::text, 'replay'::text])))
);
CREATE TABLE public.group_jobs (
    destination integer NOT NULL,
    seq bigint NOT NULL,
    listing bigint NOT NULL,
    created boolean NOT NULL,
    when_error text
);
CREATE TABLE public.job_groups (
    id bigint NOT NULL,
    destination integer NOT NULL,
    lane text NOT NULL,
    replay bigint,
    job_key text,
    listing bigint,
    seq_from bigint NOT NULL,
    seq_to bigint NOT NULL,
    jobs integer NOT NULL,
    attempts smallint NOT NULL,
    lost_loads smallint NOT NULL,
    raised_in bigint,
    isolated boolean NOT NULL,
    consecutive_failures smallint NOT NULL,
    split_from bigint,
    due_at timestamp with time zone NOT NULL,
    discard_reason text,
    load bigint,
    CONSTRAINT job_groups_lane_check CHECK ((lane = ANY (ARRAY['load'::text, 'discard'::text, 'replay'::text])))
);
CREATE SEQUENCE public.job_groups_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.job_groups_id_seq OWNED BY public.job_groups.id;
CREATE TABLE public.job_totals (
    destination integer NOT NULL,
    jobs bigint NOT NULL,
    purged_discarded bigint DEFAULT '0'::bigint NOT NULL
);
CREATE TABLE public.jobs (
    destination integer NOT NULL,
    seq bigint NOT NULL,
    when_error text
)
PARTITION BY RANGE (seq);
CREATE TABLE public.jobs_0 (
    destination integer NOT NULL,
    seq bigint NOT NULL,
    when_error text
);
CREATE TABLE public.jobs_1 (
    destination integer NOT NULL,
    seq bigint NOT NULL,
    when_error text
);
CREATE TABLE public.jobs_2 (
    destination integer NOT NULL,
    seq bigint NOT NULL,
    when_error text
);
CREATE TABLE public.keys (
    event_type integer NOT NULL,
    key text NOT NULL,
    ordinal integer NOT NULL,
    digest bytea NOT NULL,
    seq bigint,
    received_at timestamp with time zone NOT NULL
);
CREATE TABLE public.leases (
    key text NOT NULL,
    id text NOT NULL,
    holder text NOT NULL,
    since timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    boot text,
    address text
);
CREATE TABLE public.listeners (
    path text NOT NULL,
    holder text NOT NULL,
    lag bigint,
    unit text NOT NULL,
    read_at timestamp with time zone,
    error text,
    at timestamp with time zone NOT NULL
);
CREATE TABLE public.loads (
    id bigint NOT NULL,
    destination integer NOT NULL,
    lane text NOT NULL,
    state text NOT NULL,
    token bigint NOT NULL,
    attempt smallint NOT NULL,
    seq_from bigint,
    seq_to bigint,
    jobs integer NOT NULL,
    discarded integer DEFAULT 0 NOT NULL,
    "position" bigint NOT NULL,
    claimed bigint NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    run text,
    error text,
    CONSTRAINT loads_lane_check CHECK ((lane = ANY (ARRAY['load'::text, 'discard'::text, 'replay'::text]))),
    CONSTRAINT loads_state_check CHECK ((state = ANY (ARRAY['executing'::text, 'succeeded'::text, 'failed'::text, 'unknown'::text, 'released'::text])))
)
WITH (fillfactor='80');
CREATE SEQUENCE public.loads_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.loads_id_seq OWNED BY public.loads.id;
CREATE TABLE public.migration_barriers (
    target text NOT NULL,
    token bigint NOT NULL,
    holder text NOT NULL,
    version bigint DEFAULT '0'::bigint NOT NULL,
    migrating_by text,
    waits_for text
);
CREATE TABLE public.migration_transitions (
    id bigint NOT NULL,
    migration bigint NOT NULL,
    state text NOT NULL,
    token bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    by text NOT NULL,
    run text,
    error text
);
CREATE SEQUENCE public.migration_transitions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.migration_transitions_id_seq OWNED BY public.migration_transitions.id;
CREATE TABLE public.migrations (
    id bigint NOT NULL,
    scope text NOT NULL,
    version bigint NOT NULL,
    name text NOT NULL,
    checksum text,
    state text NOT NULL,
    atomic boolean NOT NULL
);
CREATE SEQUENCE public.migrations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.migrations_id_seq OWNED BY public.migrations.id;
CREATE TABLE public.outcomes (
    load bigint NOT NULL,
    seq bigint NOT NULL,
    destination integer NOT NULL,
    state text NOT NULL,
    error text NOT NULL,
    listing bigint,
    CONSTRAINT outcomes_state_check CHECK ((state = ANY (ARRAY['failed'::text, 'discarded'::text, 'replayed'::text])))
);
CREATE TABLE public.quarantine (
    id bigint NOT NULL,
    event_type integer NOT NULL,
    received_at timestamp with time zone NOT NULL,
    headers text NOT NULL,
    body bytea NOT NULL,
    error text NOT NULL,
    key text
);
CREATE SEQUENCE public.quarantine_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.quarantine_id_seq OWNED BY public.quarantine.id;
CREATE TABLE public.replays (
    id bigint NOT NULL,
    destination integer NOT NULL,
    request text NOT NULL,
    after bigint NOT NULL,
    upto bigint NOT NULL,
    planned_upto bigint NOT NULL,
    jobs bigint NOT NULL,
    created_jobs bigint NOT NULL,
    began_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    run text
);
CREATE SEQUENCE public.replays_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.replays_id_seq OWNED BY public.replays.id;
CREATE TABLE public.services (
    id text NOT NULL,
    name text NOT NULL,
    address text NOT NULL,
    version text NOT NULL,
    tags text NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    boot text
);
CREATE TABLE public.time_index (
    at timestamp with time zone NOT NULL,
    low bigint NOT NULL,
    high bigint NOT NULL
);
ALTER TABLE ONLY public.events ATTACH PARTITION public.events_0 FOR VALUES FROM ('0') TO ('5000000');
ALTER TABLE ONLY public.events ATTACH PARTITION public.events_1 FOR VALUES FROM ('5000000') TO ('10000000');
ALTER TABLE ONLY public.events ATTACH PARTITION public.events_2 FOR VALUES FROM ('10000000') TO ('15000000');
ALTER TABLE ONLY public.jobs ATTACH PARTITION public.jobs_0 FOR VALUES FROM ('0') TO ('5000000');
ALTER TABLE ONLY public.jobs ATTACH PARTITION public.jobs_1 FOR VALUES FROM ('5000000') TO ('10000000');
ALTER TABLE ONLY public.jobs ATTACH PARTITION public.jobs_2 FOR VALUES FROM ('10000000') TO ('15000000');
ALTER TABLE ONLY public.destination_events ALTER COLUMN id SET DEFAULT nextval('public.destination_events_id_seq'::regclass);
ALTER TABLE ONLY public.event_types ALTER COLUMN id SET DEFAULT nextval('public.event_types_id_seq'::regclass);
ALTER TABLE ONLY public.job_groups ALTER COLUMN id SET DEFAULT nextval('public.job_groups_id_seq'::regclass);
ALTER TABLE ONLY public.loads ALTER COLUMN id SET DEFAULT nextval('public.loads_id_seq'::regclass);
ALTER TABLE ONLY public.migration_transitions ALTER COLUMN id SET DEFAULT nextval('public.migration_transitions_id_seq'::regclass);
ALTER TABLE ONLY public.migrations ALTER COLUMN id SET DEFAULT nextval('public.migrations_id_seq'::regclass);
ALTER TABLE ONLY public.quarantine ALTER COLUMN id SET DEFAULT nextval('public.quarantine_id_seq'::regclass);
ALTER TABLE ONLY public.replays ALTER COLUMN id SET DEFAULT nextval('public.replays_id_seq'::regclass);
INSERT INTO public.blacksmith_version VALUES ('1.0');
INSERT INTO public.counter VALUES (20);
INSERT INTO public.cursors VALUES ('landing', '20');
INSERT INTO public.destination_events VALUES (1, 'warehouse/flights');
INSERT INTO public.destination_events VALUES (2, 'warehouse/seats');
INSERT INTO public.destination_events VALUES (3, 'warehouse/undeliverable');
INSERT INTO public.edits VALUES (2, 8, '{"n": "edited"}');
INSERT INTO public.epochs VALUES (0, '13a5438f', '2026-11-30 22:38:34.266567+00');
INSERT INTO public.event_totals VALUES (1, '2026-01-01', 2);
INSERT INTO public.event_totals VALUES (1, '2026-01-02', 2);
INSERT INTO public.event_totals VALUES (1, '2026-11-30', 14);
INSERT INTO public.event_totals VALUES (2, '2026-11-30', 1);
INSERT INTO public.event_types VALUES (2, 'warehouse/flights.discarded', 0, NULL, 0);
INSERT INTO public.event_types VALUES (1, 'airport/departed', 3, '2026-01-02 00:00:00+00', 3);
INSERT INTO public.events_0 VALUES (4, 1, '2026-01-02 00:00:00+00', '{"day": 2}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (5, 1, '2026-01-02 00:00:00+00', '{"day": 2}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (6, 1, '2026-11-30 22:38:35.005416+00', '{"n": "keyed"}', 'first', '{"ip": "192.0.2.1"}', '2026-01', '2026-01-02 03:04:05.678901+00', NULL);
INSERT INTO public.events_0 VALUES (7, 1, '2026-11-30 22:38:35.009288+00', '{"n": "child"}', NULL, NULL, NULL, NULL, 6);
INSERT INTO public.events_0 VALUES (8, 1, '2026-11-30 22:38:35.012626+00', '{"n":0}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (9, 1, '2026-11-30 22:38:35.012634+00', '{"n":1}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (10, 1, '2026-11-30 22:38:35.012637+00', '{"n":2}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (11, 1, '2026-11-30 22:38:35.012638+00', '{"n":3}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (12, 1, '2026-11-30 22:38:35.01264+00', '{"n":4}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (13, 1, '2026-11-30 22:38:35.012641+00', '{"n":5}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (14, 1, '2026-11-30 22:38:35.012642+00', '{"n":6}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (15, 1, '2026-11-30 22:38:35.012644+00', '{"n":7}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (16, 1, '2026-11-30 22:38:35.012645+00', '{"n":8}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (17, 1, '2026-11-30 22:38:35.012646+00', '{"n":9}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (18, 1, '2026-11-30 22:38:35.012648+00', '{"n":10}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (19, 1, '2026-11-30 22:38:35.012649+00', '{"n":11}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (20, 2, '2026-11-30 22:38:35.117137+00', '{}', NULL, NULL, NULL, NULL, 10);
INSERT INTO public.fencing_tokens VALUES (1, 'replay', 0, '');
INSERT INTO public.fencing_tokens VALUES (2, 'discard', 0, '');
INSERT INTO public.fencing_tokens VALUES (3, 'load', 0, '');
INSERT INTO public.fencing_tokens VALUES (3, 'discard', 0, '');
INSERT INTO public.fencing_tokens VALUES (3, 'replay', 0, '');
INSERT INTO public.fencing_tokens VALUES (1, 'discard', 1, 'a person');
INSERT INTO public.fencing_tokens VALUES (1, 'load', 2, 'another loader');
INSERT INTO public.fencing_tokens VALUES (2, 'load', 1, 'loader');
INSERT INTO public.fencing_tokens VALUES (2, 'replay', 1, 'replay');
INSERT INTO public.group_jobs VALUES (2, 6, 7, false, NULL);
INSERT INTO public.group_jobs VALUES (2, 8, 7, false, NULL);
INSERT INTO public.group_jobs VALUES (2, 9, 8, false, NULL);
INSERT INTO public.group_jobs VALUES (2, 10, 8, false, NULL);
INSERT INTO public.job_groups VALUES (2, 1, 'load', NULL, NULL, NULL, 13, 14, 2, 1, 0, 3, false, 0, NULL, '2026-11-30 22:39:35.134542+00', NULL, NULL);
INSERT INTO public.job_groups VALUES (1, 1, 'load', NULL, NULL, 1, 9, 10, 1, 1, 0, NULL, false, 0, NULL, '2026-11-30 22:39:35.088403+00', NULL, NULL);
INSERT INTO public.job_groups VALUES (4, 1, 'load', NULL, NULL, 1, 11, 11, 1, 1, 0, NULL, false, 0, 1, '2026-11-30 22:38:35.200785+00', 'by hand', NULL);
INSERT INTO public.job_groups VALUES (3, 1, 'load', NULL, NULL, NULL, 15, 15, 1, 0, 0, NULL, false, 0, NULL, '2026-11-30 22:38:35.166574+00', NULL, 5);
INSERT INTO public.job_groups VALUES (5, 1, 'load', NULL, NULL, NULL, 15, 15, 1, 0, 1, NULL, false, 0, NULL, '2026-11-30 22:38:35.268971+00', NULL, NULL);
INSERT INTO public.job_groups VALUES (6, 2, 'load', NULL, NULL, NULL, 1, 19, 13, 0, 1, NULL, false, 0, NULL, '2026-11-30 22:38:35.312987+00', NULL, 8);
INSERT INTO public.job_groups VALUES (8, 2, 'replay', 1, '2-1', 8, 9, 10, 2, 0, 0, NULL, false, 0, NULL, '2026-11-30 22:38:35.433039+00', NULL, NULL);
INSERT INTO public.job_groups VALUES (7, 2, 'replay', 1, '2-1', 7, 6, 8, 2, 0, 0, NULL, false, 0, NULL, '2026-11-30 22:38:35.433039+00', NULL, 9);
INSERT INTO public.job_totals VALUES (1, 14, 0);
INSERT INTO public.job_totals VALUES (2, 13, 0);
INSERT INTO public.job_totals VALUES (3, 1, 0);
INSERT INTO public.jobs_0 VALUES (1, 6, 'ValueError: its `when` raised');
INSERT INTO public.jobs_0 VALUES (2, 6, NULL);
INSERT INTO public.jobs_0 VALUES (1, 7, NULL);
INSERT INTO public.jobs_0 VALUES (1, 8, NULL);
INSERT INTO public.jobs_0 VALUES (2, 8, NULL);
INSERT INTO public.jobs_0 VALUES (1, 9, NULL);
INSERT INTO public.jobs_0 VALUES (2, 9, NULL);
INSERT INTO public.jobs_0 VALUES (1, 10, NULL);
INSERT INTO public.jobs_0 VALUES (2, 10, NULL);
INSERT INTO public.jobs_0 VALUES (1, 11, NULL);
INSERT INTO public.jobs_0 VALUES (2, 11, NULL);
INSERT INTO public.jobs_0 VALUES (1, 12, NULL);
INSERT INTO public.jobs_0 VALUES (2, 12, NULL);
INSERT INTO public.jobs_0 VALUES (1, 13, NULL);
INSERT INTO public.jobs_0 VALUES (2, 13, NULL);
INSERT INTO public.jobs_0 VALUES (1, 14, NULL);
INSERT INTO public.jobs_0 VALUES (2, 14, NULL);
INSERT INTO public.jobs_0 VALUES (1, 15, NULL);
INSERT INTO public.jobs_0 VALUES (2, 15, NULL);
INSERT INTO public.jobs_0 VALUES (1, 16, NULL);
INSERT INTO public.jobs_0 VALUES (2, 16, NULL);
INSERT INTO public.jobs_0 VALUES (1, 17, NULL);
INSERT INTO public.jobs_0 VALUES (2, 17, NULL);
INSERT INTO public.jobs_0 VALUES (1, 18, NULL);
INSERT INTO public.jobs_0 VALUES (2, 18, NULL);
INSERT INTO public.jobs_0 VALUES (1, 19, NULL);
INSERT INTO public.jobs_0 VALUES (2, 19, NULL);
INSERT INTO public.jobs_0 VALUES (3, 20, NULL);
INSERT INTO public.keys VALUES (1, 'first', 0, '\x646967657374', 6, '2026-11-30 22:38:35.00615+00');
INSERT INTO public.leases VALUES ('load/warehouse/flights', 'killed', 'a host', '2026-01-01 00:00:00+00', '2026-01-01 00:00:00+00', '', '192.0.2.1');
INSERT INTO public.listeners VALUES ('airport/departed', 'a host', 3, 'messages', NULL, 'away', '2026-11-30 22:38:35.028598+00');
INSERT INTO public.loads VALUES (1, 1, 'load', 'succeeded', 1, 1, 1, 8, 3, 0, 8, 3, '2026-11-30 22:38:35.05553+00', '2026-11-30 22:38:35.066009+00', NULL, NULL);
INSERT INTO public.loads VALUES (2, 1, 'load', 'succeeded', 1, 1, 9, 12, 4, 1, 12, 7, '2026-11-30 22:38:35.07291+00', '2026-11-30 22:38:35.088403+00', NULL, NULL);
INSERT INTO public.loads VALUES (3, 1, 'load', 'failed', 1, 1, 13, 14, 2, 0, 14, 9, '2026-11-30 22:38:35.120039+00', '2026-11-30 22:38:35.134542+00', NULL, 'the warehouse is away');
INSERT INTO public.loads VALUES (4, 1, 'load', 'released', 1, 1, 15, 15, 1, 0, 15, 10, '2026-11-30 22:38:35.15611+00', '2026-11-30 22:38:35.166574+00', NULL, NULL);
INSERT INTO public.loads VALUES (5, 1, 'load', 'unknown', 1, 1, NULL, NULL, 1, 0, 15, 10, '2026-11-30 22:38:35.237048+00', '2026-11-30 22:38:35.268971+00', NULL, 'its loader was lost');
INSERT INTO public.loads VALUES (6, 1, 'load', 'executing', 2, 1, 16, 16, 1, 0, 16, 11, '2026-11-30 22:38:35.283243+00', NULL, NULL, NULL);
INSERT INTO public.loads VALUES (7, 2, 'load', 'unknown', 1, 1, 1, 19, 13, 0, 19, 13, '2026-11-30 22:38:35.306296+00', '2026-11-30 22:38:35.312987+00', NULL, 'it took too long');
INSERT INTO public.loads VALUES (8, 2, 'load', 'succeeded', 1, 1, NULL, NULL, 13, 0, 19, 13, '2026-11-30 22:38:35.322397+00', '2026-11-30 22:38:35.335432+00', NULL, NULL);
INSERT INTO public.loads VALUES (9, 2, 'replay', 'succeeded', 1, 1, NULL, NULL, 2, 0, 0, 0, '2026-11-30 22:38:35.469681+00', '2026-11-30 22:38:35.495515+00', NULL, NULL);
INSERT INTO public.migration_barriers VALUES ('destination/lake', 1, '7c5c04dd202de35e8873b8c543bdb555', 20260101000000, NULL, '20260102000000 two of destination:lake failed(up): ValueError: no such column; fix it, then run `blacksmith migrations run`');
INSERT INTO public.migration_transitions VALUES (1, 1, 'acknowledged', 1, '2026-11-30 22:38:35.761216+00', 'a person', NULL, NULL);
INSERT INTO public.migration_transitions VALUES (2, 1, 'executing(up)', 1, '2026-11-30 22:38:35.797028+00', 'a person', NULL, NULL);
INSERT INTO public.migration_transitions VALUES (3, 1, 'succeeded(up)', 1, '2026-11-30 22:38:35.809797+00', 'a person', NULL, NULL);
INSERT INTO public.migration_transitions VALUES (4, 4, 'acknowledged', 1, '2026-11-30 22:38:35.836665+00', 'a person', NULL, NULL);
INSERT INTO public.migration_transitions VALUES (5, 4, 'executing(up)', 1, '2026-11-30 22:38:35.842465+00', 'a person', NULL, NULL);
INSERT INTO public.migration_transitions VALUES (6, 4, 'failed(up)', 1, '2026-11-30 22:38:35.861351+00', 'a person', NULL, 'ValueError: no such column');
INSERT INTO public.migrations VALUES (1, 'destination:lake', 20260101000000, 'one', NULL, 'succeeded(up)', false);
INSERT INTO public.migrations VALUES (4, 'destination:lake', 20260102000000, 'two', NULL, 'failed(up)', false);
INSERT INTO public.outcomes VALUES (2, 9, 1, 'failed', 'not yet', 1);
INSERT INTO public.outcomes VALUES (2, 10, 1, 'discarded', 'too late', NULL);
INSERT INTO public.outcomes VALUES (2, 11, 1, 'failed', 'never', 1);
INSERT INTO public.quarantine VALUES (1, 1, '2026-11-30 22:38:35.017298+00', '{"content-type":"text/plain"}', '\xff007b', 'no JSON', 'raw');
INSERT INTO public.replays VALUES (1, 2, '{"start":"2026-11-29T22:38:35.340722Z","end":"2026-12-01T22:38:35.340722Z","modes":["all"],"new_key":true}', 3, 20, 11, 4, 0, '2026-11-30 22:38:35.351253+00', NULL, 'run');
INSERT INTO public.services VALUES ('killed', 'blacksmith-gateway', '192.0.2.1', '0.1.0rc1', '', '2026-01-01 00:00:00+00', '');
INSERT INTO public.time_index VALUES ('2026-01-01 00:00:00+00', 1, 3);
INSERT INTO public.time_index VALUES ('2026-01-02 00:00:00+00', 3, 5);
INSERT INTO public.time_index VALUES ('2026-11-30 22:38:34.788492+00', 5, 5);
SELECT pg_catalog.setval('public.destination_events_id_seq', 3, true);
SELECT pg_catalog.setval('public.event_seq', 20, true);
SELECT pg_catalog.setval('public.event_types_id_seq', 2, true);
SELECT pg_catalog.setval('public.job_groups_id_seq', 8, true);
SELECT pg_catalog.setval('public.loads_id_seq', 9, true);
SELECT pg_catalog.setval('public.migration_transitions_id_seq', 6, true);
SELECT pg_catalog.setval('public.migrations_id_seq', 6, true);
SELECT pg_catalog.setval('public.quarantine_id_seq', 1, true);
SELECT pg_catalog.setval('public.replays_id_seq', 1, true);
ALTER TABLE ONLY public.blacksmith_version
    ADD CONSTRAINT blacksmith_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.counter
    ADD CONSTRAINT counter_pkey PRIMARY KEY (upto);
ALTER TABLE ONLY public.cursors
    ADD CONSTRAINT cursors_pkey PRIMARY KEY (reader);
ALTER TABLE ONLY public.destination_events
    ADD CONSTRAINT destination_events_path_key UNIQUE (path);
ALTER TABLE ONLY public.destination_events
    ADD CONSTRAINT destination_events_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.edits
    ADD CONSTRAINT edits_pkey PRIMARY KEY (destination, seq);
ALTER TABLE ONLY public.epochs
    ADD CONSTRAINT epochs_pkey PRIMARY KEY (first_seq);
ALTER TABLE ONLY public.event_totals
    ADD CONSTRAINT event_totals_pkey PRIMARY KEY (event_type, day);
ALTER TABLE ONLY public.event_types
    ADD CONSTRAINT event_types_path_key UNIQUE (path);
ALTER TABLE ONLY public.event_types
    ADD CONSTRAINT event_types_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.events_0
    ADD CONSTRAINT events_0_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.events_1
    ADD CONSTRAINT events_1_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.events_2
    ADD CONSTRAINT events_2_pkey PRIMARY KEY (seq);
ALTER TABLE ONLY public.fencing_tokens
    ADD CONSTRAINT fencing_tokens_pkey PRIMARY KEY (destination, lane);
ALTER TABLE ONLY public.group_jobs
    ADD CONSTRAINT group_jobs_pkey PRIMARY KEY (destination, seq, listing);
ALTER TABLE ONLY public.job_groups
    ADD CONSTRAINT job_groups_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.job_totals
    ADD CONSTRAINT job_totals_pkey PRIMARY KEY (destination);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (destination, seq);
ALTER TABLE ONLY public.jobs_0
    ADD CONSTRAINT jobs_0_pkey PRIMARY KEY (destination, seq);
ALTER TABLE ONLY public.jobs_1
    ADD CONSTRAINT jobs_1_pkey PRIMARY KEY (destination, seq);
ALTER TABLE ONLY public.jobs_2
    ADD CONSTRAINT jobs_2_pkey PRIMARY KEY (destination, seq);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT keys_pkey PRIMARY KEY (event_type, key, ordinal);
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.listeners
    ADD CONSTRAINT listeners_pkey PRIMARY KEY (path);
ALTER TABLE ONLY public.loads
    ADD CONSTRAINT loads_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.migration_barriers
    ADD CONSTRAINT migration_barriers_pkey PRIMARY KEY (target);
ALTER TABLE ONLY public.migration_transitions
    ADD CONSTRAINT migration_transitions_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.migrations
    ADD CONSTRAINT migrations_scope_version_key UNIQUE (scope, version);
ALTER TABLE ONLY public.outcomes
    ADD CONSTRAINT outcomes_pkey PRIMARY KEY (load, seq);
ALTER TABLE ONLY public.quarantine
    ADD CONSTRAINT quarantine_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.replays
    ADD CONSTRAINT replays_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.services
    ADD CONSTRAINT services_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.time_index
    ADD CONSTRAINT time_index_pkey PRIMARY KEY (at);
CREATE INDEX job_groups_due ON public.job_groups USING btree (destination, lane, due_at) WHERE (load IS NULL);
CREATE INDEX job_groups_load ON public.job_groups USING btree (load) WHERE (load IS NOT NULL);
CREATE INDEX job_groups_range ON public.job_groups USING btree (destination, seq_to);
CREATE INDEX job_groups_replay ON public.job_groups USING btree (replay) WHERE (replay IS NOT NULL);
CREATE INDEX keys_received_at ON public.keys USING btree (received_at);
CREATE INDEX loads_discarded ON public.loads USING btree (destination) WHERE (discarded > 0);
CREATE INDEX loads_lane ON public.loads USING btree (destination, lane, id);
CREATE INDEX loads_range ON public.loads USING btree (destination, seq_to) WHERE (seq_to IS NOT NULL);
CREATE INDEX migration_transitions_migration ON public.migration_transitions USING btree (migration, id);
CREATE INDEX outcomes_discarded ON public.outcomes USING btree (destination, seq) WHERE (state = 'discarded'::text);
CREATE INDEX outcomes_listing ON public.outcomes USING btree (listing, seq) WHERE (listing IS NOT NULL);
CREATE UNIQUE INDEX quarantine_key ON public.quarantine USING btree (event_type, key);
CREATE INDEX replays_destination ON public.replays USING btree (destination);
ALTER INDEX public.events_pkey ATTACH PARTITION public.events_0_pkey;
ALTER INDEX public.events_pkey ATTACH PARTITION public.events_1_pkey;
ALTER INDEX public.events_pkey ATTACH PARTITION public.events_2_pkey;
ALTER INDEX public.jobs_pkey ATTACH PARTITION public.jobs_0_pkey;
ALTER INDEX public.jobs_pkey ATTACH PARTITION public.jobs_1_pkey;
ALTER INDEX public.jobs_pkey ATTACH PARTITION public.jobs_2_pkey;
