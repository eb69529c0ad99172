-- Creates the table partitions of events and jobs, from the sequence's current one to two ahead.
CREATE OR REPLACE FUNCTION make_partitions() RETURNS void LANGUAGE plpgsql AS $$
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
