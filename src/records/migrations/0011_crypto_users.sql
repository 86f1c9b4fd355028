-- Crypto users that were made or changed through keyway. The password is kept only until every HSM has it.
CREATE TABLE crypto_users (
    cluster_id    TEXT NOT NULL,
    username      TEXT NOT NULL,
    second_factor INTEGER NOT NULL,
    created       INTEGER NOT NULL,
    -- Counts the passwords, so that one is not taken for another.
    version       INTEGER NOT NULL,
    sealed        BLOB,
    PRIMARY KEY (cluster_id, username)
);
-- The HSMs' own tools show names in lower case.
CREATE UNIQUE INDEX crypto_users_by_any_case ON crypto_users (cluster_id, username COLLATE NOCASE);

-- What is still to be done on an HSM (GIVE or REMOVE), and whether the user was ever given to it whole.
CREATE TABLE crypto_user_hsms (
    cluster_id TEXT NOT NULL,
    username   TEXT NOT NULL,
    hsm_id     TEXT NOT NULL,
    given      INTEGER NOT NULL,
    pending    TEXT,
    -- Whether failed logins are forgotten with it.
    unlock     INTEGER NOT NULL,
    PRIMARY KEY (cluster_id, username, hsm_id),
    FOREIGN KEY (cluster_id, username) REFERENCES crypto_users (cluster_id, username) ON DELETE CASCADE
);
CREATE INDEX crypto_user_hsms_pending ON crypto_user_hsms (cluster_id, username) WHERE pending IS NOT NULL;

-- Who is logged in as a crypto user: the hash of a token that only its caller has.
CREATE TABLE user_logins (
    token_sha256 BLOB PRIMARY KEY,
    cluster_id   TEXT NOT NULL,
    username     TEXT NOT NULL,
    caller       TEXT NOT NULL,
    ttl          INTEGER NOT NULL,
    expires      INTEGER NOT NULL
);
CREATE INDEX user_logins_by_user ON user_logins (cluster_id, username);
