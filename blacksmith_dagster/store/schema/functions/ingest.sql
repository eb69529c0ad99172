-- Inserts a group commit. The first seven arrays have one item per event, the others one per job;
-- job_event is the index of the job's event, from 1. A parent is a sequence number, or -n for the n-th
-- event of this commit. Before the first nextval() it takes a shared advisory lock whose key is the
-- sequence's value: all its sequence numbers are above that. `received` is when the events were received,
-- now if NULL.
CREATE OR REPLACE FUNCTION ingest(
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
