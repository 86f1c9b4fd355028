-- A cluster may have several lineages: what its operator says of its ancestry, and its certificate.
CREATE TABLE lineages_of_clusters (
    cluster_id TEXT NOT NULL,
    lineage    TEXT NOT NULL,
    PRIMARY KEY (cluster_id, lineage)
);
INSERT INTO lineages_of_clusters SELECT cluster_id, lineage FROM lineages;
DROP TABLE lineages;
ALTER TABLE lineages_of_clusters RENAME TO lineages;
