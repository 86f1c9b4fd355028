-- HSMs that an operator took out of use.
CREATE TABLE drained_hsms (
    cluster_id TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    note       TEXT NOT NULL,
    since      INTEGER NOT NULL,
    PRIMARY KEY (cluster_id, hsm_id)
);

-- Which token a crypto user was first logged in to on a node: another one is sent no password.
CREATE TABLE tokens (
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    serial     TEXT NOT NULL,
    PRIMARY KEY (cluster_id, username, hsm_id)
);
