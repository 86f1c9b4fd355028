-- Which backups a cluster descends from, as it was last declared: a key store may outlive its cluster's declaration.
CREATE TABLE lineages (
    cluster_id TEXT PRIMARY KEY,
    lineage    TEXT NOT NULL
);

-- An HSM that was asked to check a password. It is not asked again while its row is there: no answer was heard, or it
-- refused.
CREATE TABLE password_checks (
    cluster_id TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    PRIMARY KEY (cluster_id, hsm_id)
);
