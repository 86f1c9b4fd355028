-- The number of a key's newest version, also of one that came to nothing: none comes again. NULL while the first is the newest.
ALTER TABLE keys ADD COLUMN last_version INTEGER;
-- How many days lie between automatic rotations, and when the next one is: both, or neither.
ALTER TABLE keys ADD COLUMN rotation_days INTEGER;
ALTER TABLE keys ADD COLUMN rotation_due INTEGER;
CREATE INDEX keys_by_rotation ON keys (rotation_due) WHERE rotation_due IS NOT NULL;
-- Versions that have been used so often that another is to take their place (2^31).
CREATE INDEX key_versions_worn ON key_versions (key_id, version) WHERE uses_reserved >= 2147483648;

-- Whether somebody asked for the version.
ALTER TABLE key_versions ADD COLUMN on_demand INTEGER NOT NULL DEFAULT FALSE;

-- A version that is being made, one of a key at a time, and the HSMs that may hold it. It is no version before it is whole.
CREATE TABLE key_rotations (
    key_id     BLOB PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    cluster_id TEXT NOT NULL,
    on_demand  INTEGER NOT NULL,
    started    INTEGER NOT NULL
);
CREATE TABLE key_rotation_hsms (
    key_id BLOB NOT NULL REFERENCES key_rotations (key_id) ON DELETE CASCADE,
    hsm_id TEXT NOT NULL,
    PRIMARY KEY (key_id, hsm_id)
);

-- The version that a request asked for; NULL for a key's first.
ALTER TABLE requests ADD COLUMN version INTEGER;
