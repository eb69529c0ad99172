-- Locks a lane for this transaction, without writing a new version of its row, and reads its state. Each
-- statement sees what was committed before it began: first the fencing token, then the high watermark,
-- then the rest. `next` is the last of at most `wanted` new jobs, NULL if there is none; only the load
-- lane claims new jobs.
CREATE OR REPLACE FUNCTION enter_lane(
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
