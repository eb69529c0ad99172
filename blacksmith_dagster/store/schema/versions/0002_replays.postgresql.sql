DROP FUNCTION ingest(int[], text[], text[], text[], text[], timestamptz[], bigint[], int[], int[],
                     text[]);

-- Inserts a group commit. The first seven arrays have one item per event, the others one per job;
-- job_event is the index of the job's event, from 1. Before the first nextval() it takes a shared
-- advisory lock whose key is the sequence's value: all its sequence numbers are above that. `received` is
-- when the events were received, now if NULL.
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
    WITH item AS MATERIALIZED (
        SELECT nextval('event_seq') AS seq, n, event_type, payload, event_key, context, version, sent_at, parent
          FROM unnest(event_types, payloads, event_keys, contexts, versions, sent, parents)
               WITH ORDINALITY AS t(event_type, payload, event_key, context, version, sent_at, parent, n)),
    event AS (
        INSERT INTO events (seq, event_type, received_at, payload, key, context, version, sent_at, parent)
        SELECT seq, event_type, coalesce(received, clock_timestamp()), payload, event_key, context, version,
               sent_at, parent
          FROM item),
    job AS (
        INSERT INTO jobs (destination, seq, when_error)
        SELECT j.destination, item.seq, j.error
          FROM unnest(job_event, job_destination, job_error) AS j(n, destination, error)
          JOIN item ON item.n = j.n)
    SELECT array_agg(seq ORDER BY n) INTO made FROM item;
    RETURN made;
END $$;

-- Locks a lane for this transaction, without writing a new version of its row, and reads its state. Each
-- statement sees what was committed before it began: first the fencing token, then the high watermark,
-- then the rest. `next` is the last of at most `wanted` new jobs, NULL if there is none; only the load
-- lane (0) claims new jobs. State 1 is executing.
CREATE OR REPLACE FUNCTION enter_lane(
    of int, in_lane int, wanted int, OUT token bigint, OUT holder text, OUT now timestamptz,
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
