-- An operator has allowed one login, and nobody has made it yet.
ALTER TABLE logins ADD COLUMN granted INTEGER NOT NULL DEFAULT FALSE;
