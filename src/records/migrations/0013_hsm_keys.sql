-- A key is a key store's, or a crypto user's own: made by keyway under a label, or found in his tokens under a CKA_ID that
-- another program gave it. SQLite loosens no column, so that
-- `keys` is made anew; and with it every table whose rows would go with the old one's.
CREATE TABLE new_keys (
    id              BLOB PRIMARY KEY,
    cluster_id      TEXT NOT NULL,
    -- In whose tokens it is: kmsuser's when it is a key store's.
    username        TEXT NOT NULL,
    store_id        TEXT REFERENCES key_stores (id),
    hsm_label       TEXT,
    found_id        BLOB,
    spec            TEXT NOT NULL,
    state           TEXT NOT NULL,
    description     TEXT NOT NULL,
    created         INTEGER NOT NULL,
    current_version INTEGER NOT NULL,
    CHECK ((store_id IS NOT NULL) + (hsm_label IS NOT NULL) + (found_id IS NOT NULL) = 1),
    CHECK ((store_id IS NULL) = (username <> 'kmsuser'))
);
INSERT INTO new_keys
    SELECT id, cluster_id, 'kmsuser', store_id, NULL, NULL, spec, state, description, created, current_version FROM keys;

CREATE TABLE new_key_versions (
    key_id        BLOB NOT NULL REFERENCES new_keys (id) ON DELETE CASCADE,
    version       INTEGER NOT NULL,
    probe         BLOB,
    uses_reserved INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    PRIMARY KEY (key_id, version)
);
INSERT INTO new_key_versions SELECT key_id, version, probe, uses_reserved, created FROM key_versions;

-- With the key's user in it: what a node's token lacks is found without looking at what its other users' lack.
CREATE TABLE new_presences (
    key_id     BLOB NOT NULL,
    version    INTEGER NOT NULL,
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    proof      TEXT NOT NULL,
    time       INTEGER NOT NULL,
    PRIMARY KEY (key_id, version, cluster_id, hsm_id),
    FOREIGN KEY (key_id, version) REFERENCES new_key_versions (key_id, version) ON DELETE CASCADE
);
INSERT INTO new_presences SELECT key_id, version, cluster_id, 'kmsuser', hsm_id, proof, time FROM presences;

CREATE TABLE new_tags (
    key_id BLOB NOT NULL REFERENCES new_keys (id) ON DELETE CASCADE,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (key_id, name)
);
INSERT INTO new_tags SELECT key_id, name, value FROM tags;

CREATE TABLE new_aliases (
    name    TEXT PRIMARY KEY,
    key_id  BLOB NOT NULL REFERENCES new_keys (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL
);
INSERT INTO new_aliases SELECT name, key_id, created, updated FROM aliases;

CREATE TABLE new_requests (
    caller      TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    key_id      BLOB NOT NULL REFERENCES new_keys (id) ON DELETE CASCADE,
    created     INTEGER NOT NULL,
    PRIMARY KEY (caller, request_id)
);
INSERT INTO new_requests SELECT caller, request_id, body_sha256, key_id, created FROM requests;

DROP TABLE requests;
DROP TABLE aliases;
DROP TABLE tags;
DROP TABLE presences;
DROP TABLE key_versions;
DROP TABLE keys;
ALTER TABLE new_keys RENAME TO keys;
ALTER TABLE new_key_versions RENAME TO key_versions;
ALTER TABLE new_presences RENAME TO presences;
ALTER TABLE new_tags RENAME TO tags;
ALTER TABLE new_aliases RENAME TO aliases;
ALTER TABLE new_requests RENAME TO requests;

CREATE INDEX keys_by_store ON keys (store_id, id);
CREATE INDEX keys_by_user ON keys (cluster_id, username, id);
CREATE UNIQUE INDEX keys_by_label ON keys (cluster_id, username, hsm_label) WHERE hsm_label IS NOT NULL;
CREATE UNIQUE INDEX keys_by_found_id ON keys (cluster_id, username, found_id) WHERE found_id IS NOT NULL;
-- With the id in it, or a user's whole range of keys is read to find the few that are being made.
CREATE INDEX keys_creating ON keys (cluster_id, username, id) WHERE state = 'CREATING';
-- What a node lacks is looked for among these, without reading a row of `keys`.
CREATE INDEX keys_made ON keys (cluster_id, username, id) WHERE state <> 'CREATING';
CREATE INDEX presences_lacking ON presences (cluster_id, username, hsm_id, key_id, version) WHERE proof <> 'USED';
CREATE INDEX presences_lacking_by_time ON presences (cluster_id, username, time, hsm_id, key_id, version)
    WHERE proof <> 'USED';
CREATE INDEX aliases_by_key ON aliases (key_id, name);
CREATE INDEX requests_by_age ON requests (created);
-- A dropped key takes its request with it.
CREATE INDEX requests_by_key ON requests (key_id);

-- Keys that their users have destroyed, by `CKA_ID`, and the HSMs on which nobody has yet seen to it that they are gone.
CREATE TABLE destroyed_keys (
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    cka_id     BLOB NOT NULL,
    PRIMARY KEY (cluster_id, username, hsm_id, cka_id)
);
