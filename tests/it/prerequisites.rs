//! What a cluster lacks is told before anything is begun, at the phase that needs it and with the reason it has there.

use crate::rig::{Clients, Rig, Served, pb, refused, with_line};

const INVALID: &str = "CLOUD_HSM_CLUSTER_INVALID_CONFIGURATION";

/// The configuration with a line more in one of its nodes.
fn with_node(configuration: &str, rig: &Rig, hsm: &str, line: &str) -> String {
    let head = format!("[clusters.{}.nodes.{hsm}]\n", rig.cluster_id());
    assert!(configuration.contains(&head));
    configuration.replace(&head, &format!("{head}{line}\n"))
}

/// What a cluster can be like that no key store may be made on, or connected.
fn lacking(rig: &Rig, good: &str) -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("not active", with_line(good, "state = \"UPDATE_IN_PROGRESS\""), "CLOUD_HSM_CLUSTER_NOT_ACTIVE"),
        ("subnets in one zone", good.replace("zone = \"us-east-1b\"", "zone = \"us-east-1a\""), INVALID),
        ("nothing may pass", with_line(good, "security_group = { id = \"sg-1\" }"), INVALID),
        (
            "no HSM is ACTIVE",
            with_node(&with_node(good, rig, "hsm-1", "state = \"DEGRADED\""), rig, "hsm-2", "state = \"DELETED\""),
            INVALID,
        ),
    ]
}

fn request(rig: &Rig, name: &str, cluster: &str) -> pb::CreateKeyStoreRequest {
    pb::CreateKeyStoreRequest {
        key_store_name: name.to_owned(),
        cluster_id: cluster.to_owned(),
        key_store_password: rig.password(),
        trust_anchor_certificate: rig.trust_anchor(),
    }
}

#[tokio::test]
async fn no_key_store_is_made_on_a_cluster_that_lacks_something() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let create = request(&rig, "main", &rig.cluster_id());
    let mut cases = lacking(&rig, &good);
    cases.push(("one ACTIVE HSM", with_node(&good, &rig, "hsm-2", "state = \"DEGRADED\""), INVALID));
    let elsewhere = good.replace(&rig.cluster_id(), "cluster-2zzzzzzzzzz");
    cases.push(("not declared", elsewhere, "CLOUD_HSM_CLUSTER_NOT_FOUND"));
    for (what, configuration, reason) in cases {
        served.reload(&configuration).await;
        refused(what, clients.stores.create_key_store(create.clone()).await, reason, "");
        let told = describe(&mut clients).await;
        assert_eq!(told.ineligible_reason.is_empty(), what == "not declared", "{what}: {told:?}");
    }
    served.reload(&good).await;
    assert_eq!(describe(&mut clients).await.ineligible_reason, "");
    let made = clients.stores.create_key_store(create.clone()).await.expect("nothing is lacking").into_inner();
    served.reload(&with_line(&good, "state = \"DEGRADED\"")).await;
    let again = clients.stores.create_key_store(create).await.expect("a repeat gives the same").into_inner();
    assert_eq!(again.key_store_id, made.key_store_id);
}

async fn describe(clients: &mut Clients) -> pb::Cluster {
    let request = pb::DescribeClustersRequest::default();
    clients.clusters.describe_clusters(request).await.expect("they are told").into_inner().clusters.remove(0)
}

#[tokio::test]
async fn a_key_store_is_not_connected_to_a_cluster_that_lacks_something() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let store = clients.store(&rig, "main").await;
    let connect = pb::ConnectKeyStoreRequest { key_store_id: store.clone() };
    for (what, configuration, reason) in lacking(&rig, &good) {
        served.reload(&configuration).await;
        refused(what, clients.stores.connect_key_store(connect.clone()).await, reason, "");
        assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected, "{what}");
    }
    let subnet = format!("[clusters.{}.subnets.subnet-b2]\n", rig.cluster_id());
    assert!(good.contains(&subnet));
    let failing = [
        ("present = false", pb::ConnectionErrorCode::SubnetNotFound),
        ("free_addresses = 0", pb::ConnectionErrorCode::InsufficientFreeAddressesInSubnet),
    ];
    for (line, code) in failing {
        served.reload(&good.replace(&subnet, &format!("{subnet}{line}\n"))).await;
        clients.connect(&store).await;
        let failed = clients.settled(&store).await;
        assert_eq!((failed.connection_state(), failed.connection_error_code()), (pb::ConnectionState::Failed, code));
        assert!(failed.connection_error_message.contains("subnet-b2"), "{failed:?}");
        clients.disconnect(&store).await;
    }
    assert!(!rig.login_was_refused("hsm-1"));
    served.reload(&good).await;
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
}

#[tokio::test]
async fn an_hsm_that_is_not_active_is_not_logged_in_to_and_no_key_is_made_without_a_second_one() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = served.configuration();
    let store = clients.connected_store(&rig, "main").await;
    let key = clients.key(&store).await;
    clients.disconnect(&store).await;

    served.reload(&with_node(&good, &rig, "hsm-2", "state = \"DEGRADED\"")).await;
    clients.connect(&store).await;
    let connected = clients.settled(&store).await;
    assert_eq!(connected.connection_state(), pb::ConnectionState::Connected, "one HSM suffices");
    assert_eq!(connected.nodes.iter().map(|node| node.hsm_id.as_str()).collect::<Vec<_>>(), ["hsm-1"]);
    let ciphertext = clients.encrypt(&key.key_id, b"one is enough to use it").await;
    clients.decrypt(&ciphertext).await.expect("one is enough to use it");
    let create = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
    refused("a key on one HSM", clients.keys.create_key(create.clone()).await, INVALID, "");

    served.reload(&good).await;
    let status = clients.keys.create_key(create).await.expect_err("the second is not logged in to yet");
    assert_eq!(crate::rig::reason(&status).1, "NO_NODE", "{status}");
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    clients.key(&store).await;
}

#[tokio::test]
async fn a_name_a_cluster_and_its_relatives_carry_one_key_store_and_the_quota_bounds_all() {
    let (rig, served, mut clients) = Served::over_two_hsms().await;
    let good = with_line(&served.configuration(), "backup_lineage = \"orders\"");
    let other = "cluster-2otherother";
    let second = |lineage: &str| {
        let (_, cluster) = good.split_once("[clusters.").expect("there is one");
        let twin = format!("[clusters.{cluster}")
            .replace(&rig.cluster_id(), other)
            .replace("backup_lineage = \"orders\"", &format!("backup_lineage = {lineage:?}"))
            .replace("\"kmsuser\" }", "\"elsewhere\" }");
        format!("{good}\n{twin}")
    };
    served.reload(&second("orders")).await;
    let made = clients.stores.create_key_store(request(&rig, "main", &rig.cluster_id())).await;
    let store = made.expect("it is free").into_inner().key_store_id;
    let on_other = |name: &str| request(&rig, name, other);
    let answer = clients.stores.create_key_store(on_other("main")).await;
    refused("a name that is taken", answer, "CUSTOM_KEY_STORE_NAME_IN_USE", "");
    let answer = clients.stores.create_key_store(on_other("second")).await;
    let status = refused("a relative", answer, "CLOUD_HSM_CLUSTER_IN_USE", "");
    assert!(status.message().contains(&store), "{status}");

    // Once its cluster is not declared any more, what it descends from is known all the same.
    let alone = second("orders").replace(&format!("[clusters.{}", rig.cluster_id()), "[clusters.cluster-2zzzzzzzzzz");
    served.reload(&alone.replacen("backup_lineage = \"orders\"", "backup_lineage = \"new\"", 1)).await;
    let answer = clients.stores.create_key_store(on_other("second")).await;
    refused("a relative of one that is gone", answer, "CLOUD_HSM_CLUSTER_IN_USE", "");

    served.reload(&second("payments")).await;
    // Named backwards, and one twice: each is told once, page by page.
    let ids = [rig.cluster_id(), other.to_owned(), rig.cluster_id()];
    let mut backwards = ids.to_vec();
    backwards.sort_by(|one, other| other.cmp(one));
    let (mut told, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::DescribeClustersRequest { cluster_ids: backwards.clone(), page_size: 1, page_token };
        let page = clients.clusters.describe_clusters(request).await.expect("a page").into_inner();
        told.extend(page.clusters.into_iter().map(|cluster| cluster.cluster_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let mut all = ids[..2].to_vec();
    all.sort();
    assert_eq!(told, all);
    let second = clients.stores.create_key_store(on_other("second")).await.expect("no relative").into_inner();

    // A store that goes between two pages takes no other one along.
    let first = pb::DescribeKeyStoresRequest { page_size: 1, ..Default::default() };
    let page = clients.stores.describe_key_stores(first.clone()).await.expect("a page").into_inner();
    assert_eq!(page.key_stores[0].key_store_id, store, "the oldest comes first");
    let of_one = pb::DescribeKeyStoresRequest {
        selector: Some(pb::describe_key_stores_request::Selector::KeyStoreId(store.clone())),
        page_token: page.next_page_token.clone(),
        ..Default::default()
    };
    let answer = clients.stores.describe_key_stores(of_one).await;
    refused("a page of one store", answer, "INVALID_MARKER", "page_token");
    let delete = pb::DeleteKeyStoreRequest { key_store_id: store };
    clients.stores.delete_key_store(delete).await.expect("it has no keys");
    let next = pb::DescribeKeyStoresRequest { page_token: page.next_page_token, ..first };
    let page = clients.stores.describe_key_stores(next).await.expect("a page").into_inner();
    let told: Vec<_> = page.key_stores.iter().map(|store| store.key_store_id.as_str()).collect();
    assert_eq!((told.as_slice(), page.next_page_token.as_str()), (&[second.key_store_id.as_str()][..], ""));
}

#[tokio::test]
async fn there_are_as_many_key_stores_as_the_quota_allows() {
    let (rig, mut served, _clients) = Served::over_two_hsms().await;
    let configuration = format!("key_stores = {{ quota = 1 }}\n{}", served.configuration());
    let told = served.reload(&configuration).await;
    assert!(told.contains("key_stores") && told.contains("next start"), "{told}");
    served.tell_to_stop();
    assert!(served.ended().await.success());
    let served = tokio::task::spawn_blocking(move || {
        served.start_daemon();
        served
    });
    let served = served.await.expect("it starts again");
    let mut clients = served.clients_on_the_socket().await;
    clients.store(&rig, "main").await;
    let answer = clients.stores.create_key_store(request(&rig, "second", &rig.cluster_id())).await;
    refused("one too many", answer, "LIMIT_EXCEEDED", "");
}
