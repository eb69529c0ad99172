-- The sequence number up to which each event is committed, or never will be. Transactions commit out of
-- the order of their sequence numbers, so a reader that only remembers the highest number would skip
-- events. Reads first the upper bound, and then the lowest key that a running ingest() has locked. The
-- caller must read the events with a new snapshot.
CREATE OR REPLACE FUNCTION high_watermark() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
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
