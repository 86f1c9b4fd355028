-- When keyway made a password, and in which attempt to connect: NULL for one that an operator gave. What made them before
-- this is not known; a candidate that is not settled yet is as good as made now.
ALTER TABLE passwords ADD COLUMN made INTEGER;
ALTER TABLE passwords ADD COLUMN made_in INTEGER;
UPDATE passwords SET made = CAST(strftime('%s', 'now') AS INTEGER) * 1000
    WHERE EXISTS (SELECT 1 FROM node_passwords n WHERE n.cluster_id = passwords.cluster_id
                  AND n.username = passwords.username AND n.candidate = passwords.version);

-- The attempt to connect (connect_attempt) of the rotation that password_rotated tells.
ALTER TABLE key_stores ADD COLUMN rotated_in INTEGER;
