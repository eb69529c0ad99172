-- The databases beside that of the store: Dagster's history, and the example's warehouse.
CREATE DATABASE dagster;
CREATE DATABASE warehouse;
