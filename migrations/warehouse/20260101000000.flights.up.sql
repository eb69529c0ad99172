CREATE TABLE flights (
    carrier TEXT NOT NULL,
    flight INTEGER NOT NULL,
    time_hour TIMESTAMP NOT NULL, -- UTC
    origin TEXT,
    dest TEXT,
    distance INTEGER,
    sched_dep_time INTEGER,
    sched_arr_time INTEGER,
    tailnum TEXT,
    dep_time INTEGER,
    arr_time INTEGER,
    dep_delay DOUBLE PRECISION,
    arr_delay DOUBLE PRECISION,
    air_time DOUBLE PRECISION,
    PRIMARY KEY (carrier, flight, time_hour)
);
