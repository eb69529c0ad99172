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
CREATE FUNCTION public.enter_lane(of integer, in_lane integer, wanted integer, OUT token bigint, OUT holder text, OUT now timestamp with time zone, OUT last bigint, OUT open boolean, OUT first_claim boolean, OUT at bigint, OUT claimed bigint, OUT next bigint, OUT due boolean) RETURNS record
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
    SELECT l.id, l.state = 1, l.seq_to IS NOT NULL, l.position, l.claimed
      INTO last, open, first_claim, at, claimed
      FROM loads l
     -- A range of the index loads_lane: with equalities, a generic plan walks back through all loads by id.
     WHERE (l.destination, l.lane, l.id) >= (of, in_lane, 0)
       AND (l.destination, l.lane, l.id) < (of, in_lane + 1, 0)
     ORDER BY l.destination DESC, l.lane DESC, l.id DESC LIMIT 1;
    IF in_lane = 0 THEN
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
    -- A key is the low 32 bits of a value at or below `high`, so the distance from `high` gives the value.
    SELECT max((high - objid::bigint) & 4294967295) INTO back
      FROM pg_locks
     WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 'event_seq'::regclass::oid
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database());
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
    lane smallint NOT NULL,
    token bigint NOT NULL,
    holder text NOT NULL
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
    lane smallint DEFAULT '0'::smallint NOT NULL,
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
    load bigint
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
    lane smallint NOT NULL,
    state smallint NOT NULL,
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
    error text
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
    state smallint NOT NULL,
    error text NOT NULL,
    listing bigint
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
INSERT INTO public.blacksmith_version VALUES ('0001_initial');
INSERT INTO public.counter VALUES (6);
INSERT INTO public.destination_events VALUES (1, 'warehouse/flights');
INSERT INTO public.destination_events VALUES (2, 'warehouse/seats');
INSERT INTO public.destination_events VALUES (3, 'warehouse/undeliverable');
INSERT INTO public.epochs VALUES (0, '4402451a', '2026-11-30 18:57:52.457928+00');
INSERT INTO public.event_totals VALUES (1, '2026-11-30', 5);
INSERT INTO public.event_types VALUES (1, 'airport/departed', 0, NULL, 0);
INSERT INTO public.event_types VALUES (2, 'warehouse/flights.discarded', 0, NULL, 0);
INSERT INTO public.events_0 VALUES (2, 1, '2026-11-30 18:57:52.645721+00', '{"n":0}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (3, 1, '2026-11-30 18:57:52.645814+00', '{"n":1}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (4, 1, '2026-11-30 18:57:52.675999+00', '{"n":2}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (5, 1, '2026-11-30 18:57:52.676011+00', '{"n":3}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.events_0 VALUES (6, 1, '2026-11-30 18:57:52.70995+00', '{"n":4}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.fencing_tokens VALUES (1, 1, 0, '');
INSERT INTO public.fencing_tokens VALUES (1, 2, 0, '');
INSERT INTO public.fencing_tokens VALUES (2, 0, 0, '');
INSERT INTO public.fencing_tokens VALUES (2, 1, 0, '');
INSERT INTO public.fencing_tokens VALUES (2, 2, 0, '');
INSERT INTO public.fencing_tokens VALUES (3, 0, 0, '');
INSERT INTO public.fencing_tokens VALUES (3, 1, 0, '');
INSERT INTO public.fencing_tokens VALUES (3, 2, 0, '');
INSERT INTO public.fencing_tokens VALUES (1, 0, 1, 'loader');
INSERT INTO public.job_totals VALUES (1, 5, 0);
INSERT INTO public.jobs_0 VALUES (1, 2, NULL);
INSERT INTO public.jobs_0 VALUES (1, 3, NULL);
INSERT INTO public.jobs_0 VALUES (1, 4, NULL);
INSERT INTO public.jobs_0 VALUES (1, 5, NULL);
INSERT INTO public.jobs_0 VALUES (1, 6, NULL);
INSERT INTO public.loads VALUES (1, 1, 0, 2, 1, 1, 1, 3, 2, 0, 3, 2, '2026-11-30 18:57:52.651116+00', '2026-11-30 18:57:52.673905+00', NULL, NULL);
INSERT INTO public.loads VALUES (2, 1, 0, 2, 1, 1, 4, 5, 2, 1, 5, 4, '2026-11-30 18:57:52.682054+00', '2026-11-30 18:57:52.696283+00', NULL, NULL);
INSERT INTO public.loads VALUES (3, 1, 0, 1, 1, 1, 6, 6, 1, 0, 6, 5, '2026-11-30 18:57:52.713714+00', NULL, NULL, NULL);
INSERT INTO public.outcomes VALUES (2, 4, 1, 6, 'too late', NULL);
INSERT INTO public.time_index VALUES ('2026-11-30 18:57:52.736608+00', 6, 6);
SELECT pg_catalog.setval('public.destination_events_id_seq', 3, true);
SELECT pg_catalog.setval('public.event_seq', 6, true);
SELECT pg_catalog.setval('public.event_types_id_seq', 2, true);
SELECT pg_catalog.setval('public.job_groups_id_seq', 1, false);
SELECT pg_catalog.setval('public.loads_id_seq', 3, true);
SELECT pg_catalog.setval('public.migration_transitions_id_seq', 1, false);
SELECT pg_catalog.setval('public.migrations_id_seq', 1, false);
SELECT pg_catalog.setval('public.quarantine_id_seq', 1, false);
SELECT pg_catalog.setval('public.replays_id_seq', 1, false);
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
CREATE INDEX outcomes_discarded ON public.outcomes USING btree (destination, seq) WHERE (state = 6);
CREATE INDEX outcomes_listing ON public.outcomes USING btree (listing, seq) WHERE (listing IS NOT NULL);
CREATE UNIQUE INDEX quarantine_key ON public.quarantine USING btree (event_type, key);
CREATE INDEX replays_destination ON public.replays USING btree (destination);
ALTER INDEX public.events_pkey ATTACH PARTITION public.events_0_pkey;
ALTER INDEX public.events_pkey ATTACH PARTITION public.events_1_pkey;
ALTER INDEX public.events_pkey ATTACH PARTITION public.events_2_pkey;
ALTER INDEX public.jobs_pkey ATTACH PARTITION public.jobs_0_pkey;
ALTER INDEX public.jobs_pkey ATTACH PARTITION public.jobs_1_pkey;
ALTER INDEX public.jobs_pkey ATTACH PARTITION public.jobs_2_pkey;
