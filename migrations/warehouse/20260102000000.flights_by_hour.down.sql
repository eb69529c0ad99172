DROP INDEX flights_time_hour;
