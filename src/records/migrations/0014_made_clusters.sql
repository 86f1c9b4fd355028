-- Clusters that were made through keyway. Those of the configuration are not here.
CREATE TABLE made_clusters (
    cluster_id   TEXT PRIMARY KEY,
    region       TEXT NOT NULL,
    account      TEXT NOT NULL,
    state        TEXT NOT NULL,
    -- What its owner's authority is to sign (PEM): there from the first HSM until the cluster is initialized.
    request      TEXT,
    -- What came of it: the cluster's certificate, and the authority's. Both or neither.
    certificate  TEXT,
    trust_anchor TEXT,
    created      INTEGER NOT NULL,
    -- Who asked for it under which request id, if under one.
    caller       TEXT NOT NULL,
    request_id   TEXT,
    UNIQUE (caller, request_id)
);

CREATE TABLE made_subnets (
    cluster_id TEXT NOT NULL REFERENCES made_clusters (cluster_id) ON DELETE CASCADE,
    subnet_id  TEXT NOT NULL,
    zone       TEXT NOT NULL,
    PRIMARY KEY (cluster_id, subnet_id)
);

-- An HSM is CREATE_IN_PROGRESS until it can be used, and DELETE_IN_PROGRESS until nothing is left of it.
CREATE TABLE made_hsms (
    cluster_id          TEXT NOT NULL REFERENCES made_clusters (cluster_id) ON DELETE CASCADE,
    hsm_id              TEXT NOT NULL,
    subnet_id           TEXT NOT NULL,
    state               TEXT NOT NULL,
    -- Where its `keyway node` is; all NULL for one on the daemon's own machine.
    address             TEXT,
    session_port        INTEGER,
    identity_port       INTEGER,
    administration_port INTEGER,
    PRIMARY KEY (cluster_id, hsm_id),
    -- Two HSMs behind one node would be no copies of each other.
    UNIQUE (address, session_port)
);
