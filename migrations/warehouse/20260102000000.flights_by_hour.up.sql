CREATE INDEX flights_time_hour ON flights (time_hour);
