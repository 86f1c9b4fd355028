-- When a key is to be destroyed, and how much of its window no daemon has run through yet, in milliseconds: both set only
-- while it is PENDING_DELETION.
ALTER TABLE keys ADD COLUMN deletion INTEGER;
ALTER TABLE keys ADD COLUMN deletion_left INTEGER;
CREATE INDEX keys_pending_deletion ON keys (deletion) WHERE state = 'PENDING_DELETION';

-- When a key was last used, give or take a minute.
ALTER TABLE keys ADD COLUMN last_used INTEGER;

-- Since when a key is to go from an HSM. Of those from before nobody knows.
ALTER TABLE destroyed_keys ADD COLUMN time INTEGER NOT NULL DEFAULT 0;
CREATE INDEX destroyed_keys_by_time ON destroyed_keys (cluster_id, username, time, hsm_id, cka_id);
