use std::collections::BTreeMap;

use super::*;

fn owner(given: u32) -> PasswordOwner {
    PasswordOwner { cluster: cluster('a'), username: Username::kmsuser(), given: PasswordVersion(given) }
}

/// A store whose password has version 1, and a new one that is sealed as version 2.
async fn two_passwords(records: &Records) -> (KeyStoreRecord, PasswordVersion) {
    let record = store("main", 'a');
    records.add_key_store(&record, &password("hunter22"), 10).await.unwrap();
    let new = records.new_password(&owner(1), &password("hunter23"), at(10), 3).await.unwrap();
    assert_eq!(new, PasswordVersion(2));
    (record, new)
}

/// The node has accepted its candidate.
async fn confirm(records: &Records, hsm: &HsmId, candidate: PasswordVersion) {
    let (accepted, confirmed) = ((candidate, LoginAnswer::Accepted), (candidate, CandidateFate::Confirmed));
    records.login_settled(&owner(1), hsm, accepted, confirmed).await.unwrap();
}

#[tokio::test]
async fn an_answer_and_what_it_settles_are_written_down_together_or_not_at_all() {
    let home = Home::new();
    let records = home.open().await;
    let (_, new) = two_passwords(&records).await;
    let (on, user, old) = (cluster('a'), Username::kmsuser(), PasswordVersion(1));
    records.set_candidate(&owner(1), &[(hsm(1), old)], new).await.unwrap();
    for version in [new, old] {
        records.begin_login(&on, &hsm(1), &user, version).await.unwrap();
    }
    let standings = async || {
        let known = records.login_standing(&on, &user).await.unwrap();
        known.into_iter().map(|(_, version, standing)| (version, standing)).collect::<Vec<_>>()
    };
    let (refused, once_more) = ((old, LoginAnswer::Refused), (new, CandidateFate::OnceMore));
    let fails = "CREATE TRIGGER fails BEFORE UPDATE ON logins WHEN new.version = 2 BEGIN SELECT RAISE(FAIL, 'no'); END";
    sqlx::query(fails).execute(&records.0.write).await.unwrap();
    records.login_settled(&owner(1), &hsm(1), refused, once_more).await.unwrap_err();
    assert_eq!(standings().await, [(old, Standing::Unsettled), (new, Standing::Unsettled)]);
    sqlx::query("DROP TRIGGER fails").execute(&records.0.write).await.unwrap();
    records.login_settled(&owner(1), &hsm(1), refused, once_more).await.unwrap();
    assert_eq!(standings().await, [(old, Standing::Refused), (new, Standing::Untried)]);
}

#[tokio::test]
async fn a_candidate_is_confirmed_or_dropped_on_each_node_by_itself_and_the_first_dates_the_rotation() {
    let home = Home::new();
    let records = home.open().await;
    let (_, new) = two_passwords(&records).await;
    let old = PasswordVersion(1);
    let nodes: Vec<_> = (1..=3).map(|number| (hsm(number), old)).collect();
    assert!(records.set_candidate(&owner(1), &nodes, new).await.unwrap());
    let unsettled = NodePassword { confirmed: old, candidate: Some(new) };
    let all = nodes.iter().map(|(hsm, _)| (hsm.clone(), unsettled)).collect::<BTreeMap<_, _>>();
    assert_eq!(records.node_passwords(&owner(1)).await.unwrap(), all);
    assert_eq!(records.password_rotated(&cluster('a')).await.unwrap(), None);

    confirm(&records, &hsm(1), new).await;
    confirm(&records, &hsm(2), new).await;
    records.drop_candidate(&owner(1), &hsm(3), new).await.unwrap();
    // Dropped for ever.
    confirm(&records, &hsm(3), new).await;
    drop(records);
    let records = home.open().await;
    let confirmed = NodePassword::unchanged(new);
    // That it kept the old one is known as well: it has not what its siblings have.
    let known = BTreeMap::from([(hsm(1), confirmed), (hsm(2), confirmed), (hsm(3), NodePassword::unchanged(old))]);
    assert_eq!(records.node_passwords(&owner(1)).await.unwrap(), known);
    let rotation = Rotation { time: at(10), attempt: Some(3) };
    assert_eq!(records.password_rotated(&cluster('a')).await.unwrap(), Some(rotation), "when it was made");
    assert_eq!(records.key_stores().await.unwrap()[0].password_rotated, Some(at(10)));
}

#[tokio::test]
async fn a_node_with_an_unsettled_candidate_gets_no_other_and_neither_do_those_beside_it() {
    let home = Home::new();
    let records = home.open().await;
    let (_, new) = two_passwords(&records).await;
    let newer = records.new_password(&owner(1), &password("hunter24"), at(10), 3).await.unwrap();
    let old = PasswordVersion(1);
    assert!(records.set_candidate(&owner(1), &[(hsm(2), old)], new).await.unwrap());
    let both = [(hsm(1), old), (hsm(2), old)];
    assert!(!records.set_candidate(&owner(1), &both, newer).await.unwrap());
    let unsettled = NodePassword { confirmed: old, candidate: Some(new) };
    assert_eq!(records.node_passwords(&owner(1)).await.unwrap(), BTreeMap::from([(hsm(2), unsettled)]));
}

#[tokio::test]
async fn what_an_operator_gives_counts_for_every_node_whatever_was_changed_before() {
    let home = Home::new();
    let records = home.open().await;
    let (_, new) = two_passwords(&records).await;
    let old = PasswordVersion(1);
    records.set_candidate(&owner(1), &[(hsm(1), old), (hsm(2), old)], new).await.unwrap();
    confirm(&records, &hsm(1), new).await;
    let given = records.new_password(&owner(1), &password("hunter24"), at(10), 3).await.unwrap();
    assert_eq!(records.node_passwords(&owner(given.0)).await.unwrap(), BTreeMap::new());
    // An older candidate stands in nobody's way, and comes back with nobody.
    let newer = records.new_password(&owner(given.0), &password("hunter25"), at(10), 3).await.unwrap();
    assert!(records.set_candidate(&owner(given.0), &[(hsm(2), given)], newer).await.unwrap());
    let unsettled = NodePassword { confirmed: given, candidate: Some(newer) };
    assert_eq!(records.node_passwords(&owner(given.0)).await.unwrap(), BTreeMap::from([(hsm(2), unsettled)]));
}

#[tokio::test]
async fn a_change_that_the_node_has_told_of_is_as_good_as_an_accepted_login() {
    let home = Home::new();
    let records = home.open().await;
    let (_, new) = two_passwords(&records).await;
    let (on, user) = (cluster('a'), Username::kmsuser());
    records.set_candidate(&owner(1), &[(hsm(1), PasswordVersion(1))], new).await.unwrap();
    records.candidate_was_set(&owner(1), &[hsm(1)], new).await.unwrap();
    assert_eq!(records.begin_login(&on, &hsm(1), &user, new).await.unwrap(), LoginLeave::GrantedAgain);
    assert_eq!(records.login_standing_on(&on, &hsm(1), &user, new).await.unwrap(), Standing::Proven);
}

#[tokio::test]
async fn passwords_stay_as_long_as_a_node_needs_them_and_the_operators_own_for_ever() {
    let home = Home::new();
    let records = home.open().await;
    let (record, two) = two_passwords(&records).await;
    let sealed = async |version| {
        records.password(&cluster('a'), &Username::kmsuser(), PasswordVersion(version)).await.unwrap().is_some()
    };
    let (on, user) = (cluster('a'), Username::kmsuser());
    for (hsm, version) in [(hsm(1), two), (hsm(2), PasswordVersion(1))] {
        records.begin_login(&on, &hsm, &user, version).await.unwrap();
    }
    let three = records.new_password(&owner(1), &password("hunter24"), at(10), 3).await.unwrap();
    records.set_candidate(&owner(1), &[(hsm(1), PasswordVersion(1))], two).await.unwrap();
    confirm(&records, &hsm(1), two).await;
    records.forget_passwords(&owner(1)).await.unwrap();
    assert_eq!((sealed(1).await, sealed(2).await, sealed(3).await), (true, true, false), "nobody was given the third");

    assert!(!records.set_candidate(&owner(1), &[(hsm(1), two)], three).await.unwrap(), "nobody could log in with it");
    let four = records.new_password(&owner(1), &password("hunter25"), at(10), 3).await.unwrap();
    assert!(four > three, "no version comes again");
    records.set_candidate(&owner(1), &[(hsm(1), two)], four).await.unwrap();
    records.forget_passwords(&owner(1)).await.unwrap();
    assert_eq!((sealed(2).await, sealed(4).await), (true, true), "either may be the node's");
    confirm(&records, &hsm(1), four).await;
    records.forget_passwords(&owner(1)).await.unwrap();
    assert_eq!((sealed(1).await, sealed(2).await, sealed(4).await), (true, false, true));
    let known: Vec<_> = records.login_standing(&on, &user).await.unwrap();
    assert_eq!(known, [(hsm(2), PasswordVersion(1), Standing::Unsettled)]);

    // And all of them go with their store.
    records.delete_key_store(&record.id, record.state).await.unwrap();
    assert_eq!(records.node_passwords(&owner(0)).await.unwrap(), BTreeMap::new());
    assert!(!sealed(1).await);
}
