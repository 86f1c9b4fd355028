-- Times are milliseconds since the epoch. Ids of keys are their 16 bytes; every other id is text.

CREATE TABLE key_stores (
    id               TEXT PRIMARY KEY,
    name             TEXT NOT NULL UNIQUE,
    cluster_id       TEXT NOT NULL UNIQUE,
    trust_anchor     TEXT NOT NULL,
    state            TEXT NOT NULL,
    state_changed    INTEGER NOT NULL,
    connect_attempt  INTEGER NOT NULL,
    error_code       TEXT,
    error_message    TEXT,
    error_hsm        TEXT,
    error_time       INTEGER,
    password_version INTEGER NOT NULL,
    created          INTEGER NOT NULL
);

-- Outlives the passwords, so that a version number never comes again.
CREATE TABLE password_versions (
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    last       INTEGER NOT NULL,
    PRIMARY KEY (cluster_id, username)
);

CREATE TABLE passwords (
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    version    INTEGER NOT NULL,
    sealed     BLOB NOT NULL,
    PRIMARY KEY (cluster_id, username, version)
);

-- What each node thinks of a password: an attempt that is open was begun and never answered.
CREATE TABLE logins (
    cluster_id   TEXT NOT NULL,
    username     TEXT NOT NULL,
    hsm_id       TEXT NOT NULL,
    version      INTEGER NOT NULL,
    proven       INTEGER NOT NULL,
    attempt_open INTEGER NOT NULL,
    refused      INTEGER NOT NULL,
    PRIMARY KEY (cluster_id, username, hsm_id, version)
);

CREATE TABLE keks (
    cluster_id   TEXT NOT NULL,
    username     TEXT NOT NULL,
    kek_id       BLOB NOT NULL,
    canary_id    BLOB NOT NULL,
    made_on      TEXT NOT NULL,
    canary_probe BLOB,
    PRIMARY KEY (cluster_id, username)
);

CREATE TABLE keys (
    id              BLOB PRIMARY KEY,
    store_id        TEXT NOT NULL REFERENCES key_stores (id),
    cluster_id      TEXT NOT NULL,
    spec            TEXT NOT NULL,
    state           TEXT NOT NULL,
    description     TEXT NOT NULL,
    created         INTEGER NOT NULL,
    current_version INTEGER NOT NULL
);
CREATE INDEX keys_by_store ON keys (store_id, id);
CREATE INDEX keys_by_cluster ON keys (cluster_id, id);
-- With the id in it, or a cluster's whole range of keys is read to find the few that are being made.
CREATE INDEX keys_creating ON keys (cluster_id, id) WHERE state = 'CREATING';
-- What a node lacks is looked for among these, without reading a row of `keys`.
CREATE INDEX keys_made ON keys (cluster_id, id) WHERE state <> 'CREATING';

CREATE TABLE key_versions (
    key_id        BLOB NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    version       INTEGER NOT NULL,
    probe         BLOB,
    uses_reserved INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    PRIMARY KEY (key_id, version)
);

-- Where a key version is, as far as anybody proved it. A row says that the node may hold it.
CREATE TABLE presences (
    key_id  BLOB NOT NULL,
    version INTEGER NOT NULL,
    hsm_id  TEXT NOT NULL,
    proof   TEXT NOT NULL,
    time    INTEGER NOT NULL,
    PRIMARY KEY (key_id, version, hsm_id),
    FOREIGN KEY (key_id, version) REFERENCES key_versions (key_id, version) ON DELETE CASCADE
);

CREATE TABLE tags (
    key_id BLOB NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (key_id, name)
);

CREATE TABLE aliases (
    name    TEXT PRIMARY KEY,
    key_id  BLOB NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL
);
CREATE INDEX aliases_by_key ON aliases (key_id, name);

CREATE TABLE requests (
    caller      TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    key_id      BLOB NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    created     INTEGER NOT NULL,
    PRIMARY KEY (caller, request_id)
);
CREATE INDEX requests_by_age ON requests (created);
-- A dropped key takes its request with it.
CREATE INDEX requests_by_key ON requests (key_id);
