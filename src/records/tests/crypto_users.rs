//! Crypto users: what is pending where, and who is logged in.

use super::*;

fn alice() -> Username {
    "alice".parse().unwrap()
}

fn password(text: &str) -> Password {
    Password::trusted(text.to_owned())
}

async fn added(records: &Records, name: &str, quota: u32) -> AddedCryptoUser {
    let new = NewCryptoUser {
        cluster: cluster('a'),
        username: name.parse().unwrap(),
        second_factor: false,
        password: password("first1234"),
        created: at(0),
    };
    records.add_crypto_user(&new, &[hsm(1), hsm(2)], quota).await.unwrap()
}

async fn pending(records: &Records) -> Vec<(HsmId, UserTask)> {
    let record = records.crypto_user(&cluster('a'), &alice()).await.unwrap().unwrap();
    record.pending().map(|(hsm, task)| (hsm.clone(), task)).collect()
}

async fn pending_text(records: &Records) -> Option<(u32, String)> {
    let found = records.pending_password(&cluster('a'), &alice()).await.unwrap();
    found.map(|(version, password)| (version, password.expose().to_owned()))
}

#[tokio::test]
async fn a_password_is_kept_until_the_last_hsm_has_it_and_an_older_one_closes_nothing() {
    let home = Home::new();
    let records = home.open().await;
    let (a, user) = (cluster('a'), alice());
    assert_eq!(added(&records, "alice", 9).await, AddedCryptoUser::Added);
    assert_eq!(pending(&records).await, [(hsm(1), UserTask::Give), (hsm(2), UserTask::Give)]);
    records.crypto_user_given(&a, &user, &hsm(1), 1).await.unwrap();
    assert_eq!(pending(&records).await, [(hsm(2), UserTask::Give)]);
    assert_eq!(records.pending_crypto_users().await.unwrap(), [(a.clone(), user.clone())]);

    // Another password, while the job with the first one is at work on the second HSM.
    let both = [hsm(1), hsm(2)];
    assert!(records.set_crypto_user_password(&a, &user, &both, &password("second123"), Lock::Kept).await.unwrap());
    records.crypto_user_given(&a, &user, &hsm(2), 1).await.unwrap();
    assert_eq!(pending(&records).await.len(), 2, "it has the older one");
    assert_eq!(pending_text(&records).await, Some((2, "second123".to_owned())));
    let record = records.crypto_user(&a, &user).await.unwrap().unwrap();
    assert_eq!(record.hsms[&hsm(2)].lock, Lock::Opened, "what was to be unlocked and was not, still is");
    assert_eq!(record.hsms[&hsm(1)].lock, Lock::Kept);
    for number in [1, 2] {
        assert!(pending_text(&records).await.is_some());
        records.crypto_user_given(&a, &user, &hsm(number), 2).await.unwrap();
    }
    assert_eq!(pending_text(&records).await, None);
    assert!(records.pending_crypto_users().await.unwrap().is_empty());
}

#[tokio::test]
async fn no_password_is_kept_for_an_hsm_that_is_not_to_be_given_it() {
    let home = Home::new();
    let records = home.open().await;
    let (a, user) = (cluster('a'), alice());
    added(&records, "alice", 9).await;
    records.crypto_user_not_to_be_given(&a, &user, &hsm(2)).await.unwrap();
    assert_eq!(pending(&records).await, [(hsm(1), UserTask::Give)]);
    assert!(pending_text(&records).await.is_some(), "the other is still to be given it");
    records.crypto_user_given(&a, &user, &hsm(1), 1).await.unwrap();
    assert_eq!(pending_text(&records).await, None);
    assert!(records.pending_crypto_users().await.unwrap().is_empty());

    // What is not pending stays.
    records.crypto_user_not_to_be_given(&a, &user, &hsm(1)).await.unwrap();
    let record = records.crypto_user(&a, &user).await.unwrap().unwrap();
    assert_eq!(record.hsms.keys().collect::<Vec<_>>(), [&hsm(1)]);

    // Nor is it kept when the last one that was to be given it goes.
    assert!(records.set_crypto_user_password(&a, &user, &[hsm(1)], &password("second123"), Lock::Kept).await.unwrap());
    records.crypto_user_not_to_be_given(&a, &user, &hsm(1)).await.unwrap();
    assert_eq!(pending_text(&records).await, None);
}

#[tokio::test]
async fn a_name_is_taken_in_every_case_and_there_are_as_many_as_the_quota_allows() {
    let home = Home::new();
    let records = home.open().await;
    assert_eq!(added(&records, "alice", 2).await, AddedCryptoUser::Added);
    assert!(matches!(added(&records, "ALICE", 2).await, AddedCryptoUser::Exists(twin) if twin.username == alice()));
    assert_eq!(added(&records, "bob", 2).await, AddedCryptoUser::Added);
    assert_eq!(added(&records, "carol", 2).await, AddedCryptoUser::Full);
    assert!(records.crypto_user(&cluster('a'), &"ALICE".parse().unwrap()).await.unwrap().is_none());
    assert!(records.crypto_users(&cluster('b')).await.unwrap().is_empty());
    let names: Vec<_> = records.crypto_users(&cluster('a')).await.unwrap().into_iter().map(|it| it.username).collect();
    assert_eq!(names, [alice(), "bob".parse().unwrap()]);
}

#[tokio::test]
async fn nothing_is_left_of_a_user_whom_the_last_hsm_has_removed() {
    let home = Home::new();
    let records = home.open().await;
    let (a, user) = (cluster('a'), alice());
    added(&records, "alice", 9).await;
    records.crypto_user_given(&a, &user, &hsm(1), 1).await.unwrap();
    records.set_token_serial(&a, &hsm(1), &user, "serial").await.unwrap();
    let so = Username::security_officer_of(&user);
    records.begin_login(&a, &hsm(1), &so, PasswordVersion::SO_PIN).await.unwrap();
    records.login_refused(&a, &hsm(1), &so, PasswordVersion::SO_PIN).await.unwrap();

    assert!(records.begin_removing_crypto_user(&a, &user, &[hsm(2)]).await.unwrap());
    assert_eq!(pending_text(&records).await, None, "nobody is given it any more");
    let again = records.set_crypto_user_password(&a, &user, &[hsm(1)], &password("second123"), Lock::Kept).await;
    assert!(!again.unwrap());
    records.crypto_user_removed(&a, &user, &hsm(1)).await.unwrap();
    assert_eq!(pending(&records).await, [(hsm(2), UserTask::Remove)]);
    assert!(matches!(added(&records, "alice", 9).await, AddedCryptoUser::Exists(twin) if twin.is_being_removed()));
    records.crypto_user_removed(&a, &user, &hsm(2)).await.unwrap();
    assert!(records.crypto_user(&a, &user).await.unwrap().is_none());
    assert_eq!(records.token_serial(&a, &hsm(1), &user).await.unwrap(), None);
    assert!(records.login_standing(&a, &so).await.unwrap().is_empty());
    assert_eq!(added(&records, "alice", 9).await, AddedCryptoUser::Added);
}

fn login(number: u8, expires: u64) -> UserLoginRecord {
    UserLoginRecord {
        token_sha256: [number; 32],
        cluster: cluster('a'),
        username: alice(),
        caller: "ops".to_owned(),
        ttl: Duration::from_secs(60),
        expires: at(expires),
        sealed: vec![number],
        version: PasswordVersion(1),
    }
}

#[tokio::test]
async fn a_login_is_for_the_password_that_was_proved_and_expired_ones_take_no_place() {
    let home = Home::new();
    let records = home.open().await;
    let (a, user) = (cluster('a'), alice());
    assert_eq!(records.add_user_login(&login(0, 60), &hsm(1), 2, at(0)).await.unwrap(), AddedLogin::Outdated);
    added(&records, "alice", 9).await;
    let former = UserLoginRecord { version: PasswordVersion(0), ..login(1, 60) };
    assert_eq!(records.add_user_login(&former, &hsm(1), 2, at(0)).await.unwrap(), AddedLogin::Outdated);
    assert_eq!(
        records.add_user_login(&login(1, 60), &hsm(1), 2, at(0)).await.unwrap(),
        AddedLogin::Added(PasswordVersion(1))
    );
    assert_eq!(
        records.add_user_login(&login(2, 90), &hsm(1), 2, at(0)).await.unwrap(),
        AddedLogin::Added(PasswordVersion(1))
    );
    assert_eq!(records.add_user_login(&login(3, 90), &hsm(1), 2, at(59)).await.unwrap(), AddedLogin::Full);
    assert_eq!(records.logged_in_until(&a, &user, at(59)).await.unwrap(), Some(at(90)));
    assert_eq!(
        records.add_user_login(&login(3, 90), &hsm(1), 2, at(60)).await.unwrap(),
        AddedLogin::Added(PasswordVersion(1))
    );
    assert!(records.user_login(&[2; 32], "mallory", at(60)).await.unwrap().is_none());
    assert!(records.renew_user_login(&[2; 32], "mallory", at(60)).await.unwrap().is_none());
    let renewed = records.renew_user_login(&[2; 32], "ops", at(80)).await.unwrap().unwrap();
    assert_eq!((renewed.expires, &renewed), (at(140), &UserLoginRecord { expires: at(140), ..login(2, 0) }));
    records.begin_removing_crypto_user(&a, &user, &[hsm(2)]).await.unwrap();
    assert_eq!(records.logged_in_until(&a, &user, at(80)).await.unwrap(), None);
    assert_eq!(records.add_user_login(&login(4, 200), &hsm(1), 2, at(80)).await.unwrap(), AddedLogin::Outdated);
}

#[tokio::test]
async fn a_password_that_was_proved_on_an_hsm_may_be_offered_there_and_kmsusers_is_another_at_each_login() {
    let home = Home::new();
    let records = home.open().await;
    let (a, user, version) = (cluster('a'), alice(), PasswordVersion(1));
    added(&records, "alice", 9).await;
    for hsm in [hsm(1), hsm(2)] {
        records.begin_login(&a, &hsm, &user, version).await.unwrap();
        records.login_refused(&a, &hsm, &user, version).await.unwrap();
    }
    records.add_user_login(&login(1, 60), &hsm(1), 9, at(0)).await.unwrap();
    assert_eq!(records.begin_login(&a, &hsm(1), &user, version).await.unwrap(), LoginLeave::GrantedAgain);
    assert_eq!(records.begin_login(&a, &hsm(2), &user, version).await.unwrap(), LoginLeave::Refused);

    let as_kmsuser =
        |number| UserLoginRecord { username: Username::kmsuser(), version: PasswordVersion(0), ..login(number, 60) };
    let owner = PasswordOwner { cluster: a.clone(), username: Username::kmsuser(), given: PasswordVersion(0) };
    let stores = records.new_password(&owner, &password("stores123"), at(0), 1).await.unwrap();
    let mut versions = vec![stores];
    for number in [2, 3] {
        match records.add_user_login(&as_kmsuser(number), &hsm(1), 9, at(0)).await.unwrap() {
            AddedLogin::Added(version) => versions.push(version),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(versions, [PasswordVersion(1), PasswordVersion(2), PasswordVersion(3)], "none is taken for another");
    let kept = records.user_login(&[3; 32], "ops", at(1)).await.unwrap().unwrap();
    assert_eq!((kept.version, kept.sealed), (PasswordVersion(3), vec![3]));
    let ended = records.end_user_login(&[3; 32], "ops").await.unwrap();
    assert_eq!(ended, Some((a, Username::kmsuser())));
    assert_eq!(records.end_user_login(&[3; 32], "ops").await.unwrap(), None);
}
