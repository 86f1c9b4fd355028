-- A key is for something, beside what it is: all that were made so far encrypt.
ALTER TABLE keys ADD COLUMN usage TEXT NOT NULL DEFAULT 'ENCRYPT_DECRYPT';
-- DER-encoded SubjectPublicKeyInfo; of asymmetric keys, once they exist.
ALTER TABLE key_versions ADD COLUMN public_key BLOB;
