-- Which password a node has since keyway last changed it there. A version that an operator gave later counts for every
-- node again, whatever stands here. A candidate may be the node's password, or not: its next login decides.
CREATE TABLE node_passwords (
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    confirmed  INTEGER NOT NULL,
    candidate  INTEGER,
    PRIMARY KEY (cluster_id, username, hsm_id)
);

-- When a node first logged in with a password that keyway had made.
ALTER TABLE key_stores ADD COLUMN password_rotated INTEGER;
