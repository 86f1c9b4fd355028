-- How long daemons have run, in milliseconds. Every window of a deletion is counted by it: what was left of one is how far it
-- is from here.
CREATE TABLE run_time (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    millis INTEGER NOT NULL
);
INSERT INTO run_time (id, millis) VALUES (1, 0);
ALTER TABLE keys RENAME COLUMN deletion_left TO deletion_at_run;
