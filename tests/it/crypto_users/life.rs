//! From being made to being deleted.

use super::*;

#[tokio::test]
async fn a_user_is_made_on_every_hsm_listed_and_deleted_with_his_tokens() {
    let rig = Rig::new().start();
    let mut clients = rig.clients().await;
    let kmsuser = clients.user(&rig, "kmsuser").await.expect("dev made it");
    assert_eq!((present_on(&kmsuser).len(), kmsuser.key_store_id.as_str()), (3, ""));

    let alice = clients.create_user(&rig, "alice", FIRST).await.unwrap();
    assert_eq!(present_on(&alice), ["hsm-1", "hsm-2", "hsm-3"]);
    assert!(!alice.second_factor && alice.hsms.iter().all(|on| !on.locked && on.failed_logins == 0));
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        assert!(rig.user_opens(hsm, "alice", FIRST) && !rig.user_opens(hsm, "alice", WRONG));
    }
    clients.create_user(&rig, "bob", SECOND).await.unwrap();

    let names = |users: &[pb::CryptoUser]| users.iter().map(|user| user.username.clone()).collect::<Vec<_>>();
    assert_eq!(names(&clients.list_users(&rig).await), ["alice", "bob", "kmsuser"]);
    let page =
        |page_token: String| pb::ListCryptoUsersRequest { cluster_id: rig.cluster_id(), page_size: 2, page_token };
    let first = clients.users.list_crypto_users(page(String::new())).await.unwrap().into_inner();
    let second = clients.users.list_crypto_users(page(first.next_page_token)).await.unwrap().into_inner();
    assert_eq!((names(&first.users).len(), names(&second.users)), (2, vec!["kmsuser".to_owned()]));
    assert_eq!(second.next_page_token, "");

    clients.delete_user(&rig, "alice").await.unwrap();
    assert_eq!(names(&clients.list_users(&rig).await), ["bob", "kmsuser"]);
    assert!(["hsm-1", "hsm-2", "hsm-3"].iter().all(|hsm| !rig.user_token(hsm, "alice").exists()));
    assert!(rig.user_opens("hsm-1", "bob", SECOND), "another's token stays");
    let status = refused("deleting nobody", clients.delete_user(&rig, "alice").await, "NOT_FOUND", "");
    assert!(status.message().contains("alice"), "{}", status.message());

    let again = clients.create_user(&rig, "alice", SECOND).await.unwrap();
    assert_eq!(present_on(&again).len(), 3, "the name is free again");
    assert!(rig.user_opens("hsm-2", "alice", SECOND) && !rig.user_opens("hsm-2", "alice", FIRST));
    assert!(rig.workers().is_empty(), "whoever did a job has left: {:?}", rig.workers());
}
