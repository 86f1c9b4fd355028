//! Plans, not times: a query that reads what it does not need grows with the number of keys.

use super::*;
use crate::records::{aliases, creating, drifts, key_life, keys, presences, replicas, rotations};

const KEYS: u32 = 20_000;

#[tokio::test]
async fn with_many_keys_every_page_is_read_from_where_it_starts() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    fill(&records, &record).await;

    let lacking =
        ["presences_lacking (cluster_id=? AND username=? AND hsm_id=? AND (key_id,version)>(?,?))", "keys_1 (id=?)"];
    assert_steps(&records, replicas::LACKING, &lacking).await;
    let acknowledged = ["keys_made (cluster_id=? AND username=? AND id>?)", "key_versions_1 (key_id=?"];
    assert_steps(&records, replicas::ACKNOWLEDGED, &acknowledged).await;
    assert_steps(
        &records,
        replicas::PROVEN,
        &["keys_made (cluster_id=? AND username=? AND id>?)", "presences_1 (key_id=?)"],
    )
    .await;
    let only_on = ["keys_made (cluster_id=? AND username=?)", "presences_1 (key_id=?)"];
    assert_steps(&records, replicas::ONLY_ON, &only_on).await;
    assert_steps(
        &records,
        replicas::KNOWN,
        &["keys_by_user (cluster_id=? AND username=? AND id=?)", "key_versions_1 (key_id=?)"],
    )
    .await;
    let unproven = [
        "presences_lacking_by_time (cluster_id=? AND username=? AND (time,hsm_id,key_id,version)>(?,?,?,?))",
        "keys_made (cluster_id=? AND username=? AND id=?)",
    ];
    assert_steps(&records, drifts::UNPROVEN, &unproven).await;
    assert_steps(&records, drifts::ODD, &["drifts_by_time (cluster_id=? AND found>?)"]).await;
    let awaiting = ["destroyed_keys_by_time (cluster_id=? AND username=? AND (time,hsm_id,cka_id)>(?,?,?))"];
    assert_steps(&records, drifts::AWAITING, &awaiting).await;
    assert_steps(&records, key_life::DUE, &["keys_pending_deletion (deletion>? AND deletion<?)"]).await;
    assert_steps(&records, rotations::DUE, &["keys_by_rotation (rotation_due>? AND rotation_due<?)"]).await;
    assert_steps(&records, rotations::WORN, &["key_versions_worn (key_id>?)", "keys_1 (id=?)"]).await;
    assert_steps(&records, presences::DOUBT, &["keys_by_user (cluster_id=? AND username=?)", "presences_1 (key_id=?)"])
        .await;
    assert_steps(&records, keys::ONE, &["keys_1 (id=?)", "key_versions_1 (key_id=?)"]).await;
    assert_steps(&records, keys::PAGE, &["keys_1 (id>?)", "key_versions_1 (key_id=?)"]).await;
    assert_steps(&records, keys::PAGE_OF_STORE, &["keys_by_store (store_id=? AND id>?)"]).await;
    assert_steps(&records, keys::PAGE_OF_USER, &["keys_by_label (cluster_id=? AND username=? AND hsm_label>?)"]).await;
    assert_steps(&records, creating::CREATING, &["keys_creating (cluster_id=? AND username=?)"]).await;
    assert_steps(&records, aliases::PAGE, &["aliases_1 (name>?)"]).await;
    assert_steps(&records, aliases::PAGE_OF_KEY, &["aliases_by_key (key_id=? AND name>?)"]).await;
    assert_steps(&records, aliases::DELETE, &["aliases_1 (name=?)", "keys_1 (id=?)"]).await;
    assert_steps(&records, "DELETE FROM requests WHERE created < ?", &["requests_by_age (created<?)"]).await;
    assert_steps(&records, "DELETE FROM requests WHERE key_id = ?", &["requests_by_key (key_id=?)"]).await;
}

#[tokio::test]
async fn pages_of_what_a_node_lacks_meet_end_to_end() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    fill(&records, &record).await;
    records.expect_keys(&kmsuser(&record.cluster), &hsm(2), at(0)).await.unwrap();

    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = records.keys_lacking(&kmsuser(&record.cluster), &hsm(2), after, 999).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.key, last.version));
        seen.extend(page.iter().map(|lacking| (lacking.key, lacking.version)));
    }
    assert_eq!(seen.len(), KEYS as usize);
    assert!(seen.is_sorted_by(|one, next| one < next), "each once");
    assert!(records.keys_lacking(&kmsuser(&record.cluster), &hsm(1), None, 999).await.unwrap().is_empty());
    let page = records.list_keys(Some(&record.id), Some(seen[9_999].0), 100).await.unwrap();
    assert_eq!(page[0].id, seen[10_000].0);
    assert_eq!((page.len(), page[99].versions[0].on.len()), (100, 2));
}

/// Enabled keys that are proven on the first node.
async fn fill(records: &Records, store: &KeyStoreRecord) {
    let mut change = records.begin().await.unwrap();
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
         INSERT INTO keys
           (id, cluster_id, username, store_id, spec, state, description, created, current_version)
         SELECT randomblob(16), ?, 'kmsuser', ?, 'SYMMETRIC_DEFAULT', 'ENABLED', '', 0, 1 FROM n",
    )
    .bind(KEYS)
    .bind(store.cluster.as_str())
    .bind(store.id.as_str())
    .execute(&mut *change)
    .await
    .unwrap();
    for rest in [
        "INSERT INTO key_versions (key_id, version, probe, uses_reserved, created) SELECT id, 1, x'01', 1, 0 FROM keys",
        "INSERT INTO presences SELECT id, 1, cluster_id, 'kmsuser', 'hsm-1', 'USED', 0 FROM keys",
    ] {
        sqlx::query(rest).execute(&mut *change).await.unwrap();
    }
    change.commit().await.unwrap();
}

/// Asserts that each of these searches is among the plan's steps, and that no step reads a whole table.
async fn assert_steps(records: &Records, query: &'static str, searches: &[&str]) {
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
    let rows = sqlx::query(explain).fetch_all(&records.0.read).await.unwrap();
    let steps: Vec<String> = rows.iter().map(|row| sqlx::Row::try_get(row, "detail").unwrap()).collect();
    for search in searches {
        assert!(steps.iter().any(|step| step.starts_with("SEARCH") && step.contains(search)), "{query}: {steps:#?}");
    }
    // The page itself, once it is found or given, is read whole.
    let whole = steps.iter().find(|step| step.starts_with("SCAN") && !step.starts_with("SCAN page"));
    assert_eq!(whole, None, "{query}: {steps:#?}");
}
