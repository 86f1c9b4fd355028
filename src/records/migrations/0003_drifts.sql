-- What an HSM holds that the records do not explain, or otherwise than it was made, as the last listing of its token
-- showed it. What an HSM lacks stands in `presences` alone.
CREATE TABLE drifts (
    seq        INTEGER PRIMARY KEY,
    cluster_id TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    class      INTEGER NOT NULL,
    cka_id     BLOB NOT NULL,
    label      TEXT NOT NULL,
    differing  TEXT NOT NULL,
    -- When it was first seen, and in which listing last.
    found      INTEGER NOT NULL,
    listing    INTEGER NOT NULL,
    UNIQUE (cluster_id, hsm_id, kind, class, cka_id, label)
);
CREATE INDEX drifts_by_time ON drifts (cluster_id, found);

-- An acknowledged version has a row for every node of its cluster, so that what a node lacks is found without looking
-- at what it has.
CREATE INDEX presences_lacking ON presences (hsm_id, key_id, version) WHERE proof <> 'USED';
CREATE INDEX presences_lacking_by_time ON presences (time, hsm_id, key_id, version) WHERE proof <> 'USED';
