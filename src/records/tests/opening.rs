use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test]
async fn one_daemon_at_a_time_holds_the_records() {
    let home = Home::new();
    let records = home.open().await;
    let second = Records::open(&home.settings()).await.unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
    drop(records);
    home.open().await;
}

#[tokio::test]
async fn a_lost_short_or_readable_sealing_key_is_refused_and_never_replaced() {
    let home = Home::new();
    let records = home.open().await;
    connected_store(&records).await;
    drop(records);
    let path = home.settings().sealing_key;
    let key = std::fs::read(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Records::open(&home.settings()).await, Err(OpenError::NoSealingKey(_))));
    assert!(!path.exists());
    std::fs::write(&path, &key).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    assert!(matches!(Records::open(&home.settings()).await, Err(OpenError::OpenSealingKey(_))));
    std::fs::write(&path, &key[..31]).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(matches!(Records::open(&home.settings()).await, Err(OpenError::BadSealingKey(_))));
    std::fs::write(&path, vec![9; 32]).unwrap();
    let records = home.open().await;
    let opened = records.password(&cluster('a'), &Username::kmsuser(), PasswordVersion(1)).await;
    assert!(opened.is_err(), "another key opens nothing");
}

#[tokio::test]
async fn records_of_a_newer_release_are_refused() {
    let home = Home::new();
    let records = home.open().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999, 'later', TRUE, x'00', 0)",
    )
    .execute(&records.0.write)
    .await
    .unwrap();
    drop(records);
    let refused = Records::open(&home.settings()).await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer(_)), "{refused}");
}

#[tokio::test]
async fn only_the_owner_can_read_what_is_on_the_disk() {
    let home = Home::new();
    let records = home.open().await;
    connected_store(&records).await;
    let directory = home.0.path().join("data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for file in std::fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn every_connection_keeps_to_what_durability_needs() {
    let home = Home::new();
    let records = home.open().await;
    for pool in [&records.0.write, &records.0.read] {
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(pool).await.unwrap();
        let full: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(pool).await.unwrap();
        let foreign_keys: bool = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(pool).await.unwrap();
        assert_eq!((journal.as_str(), full, foreign_keys), ("wal", 2, true));
    }
}

#[tokio::test]
async fn a_password_in_anothers_row_does_not_open() {
    let home = Home::new();
    let records = home.open().await;
    for (name, on, secret) in [("one", 'a', "hunter22"), ("two", 'b', "hunter33")] {
        records.add_key_store(&store(name, on), &password(secret), 10).await.unwrap();
    }
    let opened = |on| {
        let records = records.clone();
        async move { records.password(&cluster(on), &Username::kmsuser(), PasswordVersion(1)).await }
    };
    assert_eq!(opened('a').await.unwrap().unwrap().expose(), "hunter22");
    let sealed: Vec<Vec<u8>> = sqlx::query_scalar("SELECT sealed FROM passwords ORDER BY cluster_id")
        .fetch_all(&records.0.read)
        .await
        .unwrap();
    for (on, other) in [('a', &sealed[1]), ('b', &sealed[0])] {
        let swap = sqlx::query("UPDATE passwords SET sealed = ? WHERE cluster_id = ?");
        swap.bind(other).bind(cluster(on).as_str()).execute(&records.0.write).await.unwrap();
    }
    for on in ['a', 'b'] {
        assert!(opened(on).await.is_err());
    }
}

#[tokio::test]
async fn a_failing_database_is_an_error_and_not_an_answer() {
    let home = Home::new();
    let records = home.open().await;
    let record = connected_store(&records).await;
    records.0.write.close().await;
    let unavailable = records.begin_key(&new_key(&record), &LIMITS).await.unwrap_err();
    assert_eq!(unavailable.to_string(), "the records cannot be reached");
    assert!(std::error::Error::source(&unavailable).is_some());
}

/// The records as they were made when this was their last step.
async fn of_before(home: &Home, last_step: i64) -> sqlx::SqlitePool {
    let settings = home.settings();
    std::fs::create_dir_all(settings.database.parent().unwrap()).unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&settings.database).create_if_missing(true);
    let before = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let mut first = open::migrations();
    first.migrations.to_mut().retain(|step| step.version <= last_step);
    first.run(&before).await.unwrap();
    before
}

#[tokio::test]
async fn a_password_that_was_good_before_there_were_rotations_is_good_still_and_due_for_one() {
    let home = Home::new();
    let before = of_before(&home, 6).await;
    let (store, cluster, user) = (KeyStoreId::random(), cluster('a'), Username::kmsuser());
    let anchor = authority();
    for row in [
        format!(
            "INSERT INTO key_stores VALUES ('{store}', 'main', '{cluster}', '{}', 'CONNECTED', 0, 1, NULL, NULL, NULL, NULL, 1, 0)",
            anchor.pem()
        ),
        format!("INSERT INTO password_versions VALUES ('{cluster}', '{user}', 1)"),
        format!(
            "INSERT INTO logins (cluster_id, username, hsm_id, version, proven, attempt_open, refused)
             VALUES ('{cluster}', '{user}', 'hsm-1', 1, TRUE, FALSE, FALSE)"
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(row)).execute(&before).await.unwrap();
    }
    before.close().await;

    let records = home.open().await;
    assert_eq!(
        records.login_standing_on(&cluster, &hsm(1), &user, PasswordVersion(1)).await.unwrap(),
        Standing::Proven
    );
    let owner = PasswordOwner { cluster: cluster.clone(), username: user, given: PasswordVersion(1) };
    assert!(records.node_passwords(&owner).await.unwrap().is_empty(), "every HSM has what the operator gave");
    assert_eq!(records.password_rotated(&cluster).await.unwrap(), None);
    assert_eq!(records.key_stores().await.unwrap()[0].password_rotated, None);
    let new = records.new_password(&owner, &password("hunter23"), at(1), 2).await.unwrap();
    assert_eq!(new, PasswordVersion(2));
}

#[tokio::test]
async fn keys_and_what_is_known_of_them_are_still_there_when_records_of_before_are_opened() {
    let home = Home::new();
    let before = of_before(&home, 3).await;
    let (key, store, cluster) = (KeyId::random(), KeyStoreId::random(), cluster('a'));
    let rows = [
        format!(
            "INSERT INTO key_stores VALUES ('{store}', 'main', '{cluster}', '', 'CONNECTED', 0, 1, NULL, NULL, NULL, NULL, 1, 0)"
        ),
        format!("INSERT INTO keys VALUES (?, '{store}', '{cluster}', 'SYMMETRIC_DEFAULT', 'ENABLED', '', 0, 1)"),
        "INSERT INTO key_versions VALUES (?, 1, x'01', 1, 0)".to_owned(),
        "INSERT INTO presences VALUES (?, 1, 'hsm-1', 'USED', 7000)".to_owned(),
        "INSERT INTO presences VALUES (?, 1, 'hsm-2', 'MISSING', 8000)".to_owned(),
        "INSERT INTO tags VALUES (?, 'team', 'payments')".to_owned(),
        "INSERT INTO aliases (key_id, name, created, updated) VALUES (?, 'alias/x', 0, 0)".to_owned(),
        "INSERT INTO requests (key_id, caller, request_id, body_sha256, created) VALUES (?, 'ops', 'r', x'00', 0)"
            .to_owned(),
    ];
    for row in rows {
        let row = sqlx::query(sqlx::AssertSqlSafe(row)).bind(key.as_bytes().as_slice());
        row.execute(&before).await.unwrap();
    }
    before.close().await;

    let records = home.open().await;
    let mut record = records.key(key).await.unwrap().unwrap();
    assert_eq!(record.home, KeyHome::KeyStore(store));
    assert_eq!(records.key_id_of_alias(&"alias/x".parse().unwrap()).await.unwrap(), Some(key));
    for table in ["tags", "requests"] {
        let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE key_id = ?"));
        let count: i64 =
            sqlx::query_scalar(count).bind(key.as_bytes().as_slice()).fetch_one(&records.0.read).await.unwrap();
        assert_eq!(count, 1, "{table}");
    }
    let on = record.versions.remove(0).on;
    let on: Vec<_> = on.into_iter().map(|on| (on.hsm, on.proof)).collect();
    assert_eq!(on, [(hsm(1), Proof::Used), (hsm(2), Proof::Missing)]);
    assert_eq!(records.keys_lacking(&kmsuser(&cluster), &hsm(2), None, 9).await.unwrap().len(), 1);
    forget_key(&records, key).await;
    let left: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM key_versions) + (SELECT count(*) FROM presences) + (SELECT count(*) FROM tags)
           + (SELECT count(*) FROM aliases) + (SELECT count(*) FROM requests)",
    )
    .fetch_one(&records.0.read)
    .await
    .unwrap();
    assert_eq!(left, 0, "what belongs to a key goes with it as ever");
}
