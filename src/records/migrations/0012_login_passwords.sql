-- A login holds its password, sealed under a key that only its token gives. Those from before have none: they end.
DELETE FROM user_logins;
ALTER TABLE user_logins ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE user_logins ADD COLUMN sealed BLOB NOT NULL DEFAULT x'';
