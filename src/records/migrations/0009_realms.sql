-- Where a key store was made, which is part of its keys' ARNs. Not known of one from before, until its cluster is declared.
ALTER TABLE key_stores ADD COLUMN region TEXT;
ALTER TABLE key_stores ADD COLUMN account TEXT;
