-- Clusters that a key store stood on before, with the password it knew there, for the day it goes back.
CREATE TABLE former_clusters (
    store_id         TEXT NOT NULL REFERENCES key_stores (id) ON DELETE CASCADE,
    cluster_id       TEXT NOT NULL,
    password_version INTEGER NOT NULL,
    PRIMARY KEY (store_id, cluster_id)
);

-- A presence is what is known of a token, and HSMs of several clusters may go by one id: what was proved in one cluster
-- says nothing of another, and is still known when the key's store goes back.
CREATE TABLE presences_in_clusters (
    key_id     BLOB NOT NULL,
    version    INTEGER NOT NULL,
    cluster_id TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    proof      TEXT NOT NULL,
    time       INTEGER NOT NULL,
    PRIMARY KEY (key_id, version, cluster_id, hsm_id),
    FOREIGN KEY (key_id, version) REFERENCES key_versions (key_id, version) ON DELETE CASCADE
);
INSERT INTO presences_in_clusters
    SELECT p.key_id, p.version, k.cluster_id, p.hsm_id, p.proof, p.time FROM presences p JOIN keys k ON k.id = p.key_id;
DROP TABLE presences;
ALTER TABLE presences_in_clusters RENAME TO presences;

CREATE INDEX presences_lacking ON presences (cluster_id, hsm_id, key_id, version) WHERE proof <> 'USED';
CREATE INDEX presences_lacking_by_time ON presences (cluster_id, time, hsm_id, key_id, version) WHERE proof <> 'USED';
