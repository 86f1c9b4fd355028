use super::*;

#[tokio::test]
async fn an_hsm_is_asked_once_to_check_a_password_until_it_may_be_asked_again() {
    let home = Home::new();
    let records = home.open().await;
    let (a, b) = (cluster('a'), cluster('b'));
    assert!(records.begin_password_check(&a, &hsm(1)).await.unwrap());
    assert!(!records.begin_password_check(&a, &hsm(1)).await.unwrap(), "it was asked");
    assert!(records.begin_password_check(&b, &hsm(1)).await.unwrap(), "another cluster's is another");
    drop(records);
    let records = home.open().await;
    assert_eq!(records.spent_password_checks(&a).await.unwrap(), [hsm(1)].into());
    records.allow_password_check(&a, &hsm(1)).await.unwrap();
    assert!(records.spent_password_checks(&a).await.unwrap().is_empty());
    assert!(records.begin_password_check(&a, &hsm(1)).await.unwrap());

    let version = PasswordVersion(1);
    records.begin_login(&a, &hsm(1), &Username::security_officer(), PasswordVersion::SO_PIN).await.unwrap();
    records.login_succeeded(&a, &hsm(1), &Username::security_officer(), PasswordVersion::SO_PIN).await.unwrap();
    assert!(!records.begin_password_check(&a, &hsm(1)).await.unwrap(), "the SO's login says nothing of kmsuser");
    records.begin_login(&a, &hsm(1), &Username::kmsuser(), version).await.unwrap();
    records.login_succeeded(&a, &hsm(1), &Username::kmsuser(), version).await.unwrap();
    assert!(records.begin_password_check(&a, &hsm(1)).await.unwrap(), "it has accepted kmsuser's password");
}

#[tokio::test]
async fn lineages_are_remembered_as_they_were_declared_last() {
    let home = Home::new();
    let records = home.open().await;
    let told = |lineages: &[&str]| vec![(cluster('a'), lineages.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())];
    records.remember_lineages(&told(&["one"])).await.unwrap();
    records.remember_lineages(&told(&["three", "two"])).await.unwrap();
    records.remember_lineages(&[]).await.unwrap();
    let each = ["three", "two"].map(|lineage| (cluster('a'), lineage.to_owned()));
    assert_eq!(records.lineages::<String>().await.unwrap(), each);
}
