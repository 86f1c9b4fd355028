//! What tokens and records disagree about: first seen, seen again, gone, and told in pages.

use super::*;

fn orphan(label: &str) -> Oddity {
    Oddity::Orphan(ObjectName { class: 4, cka_id: vec![7], label: label.to_owned() })
}

async fn listed(records: &Records, on: &ClusterId, hsms: &[HsmId]) -> Vec<DriftRecord> {
    let found = records.list_drifts(on, hsms, None, 1_000).await.unwrap();
    found.into_iter().map(|(_, drift)| drift).collect()
}

#[tokio::test]
async fn a_stranger_keeps_the_time_it_was_first_seen_and_goes_with_the_listing_that_shows_it_no_more() {
    let home = Home::new();
    let records = home.open().await;
    let (on, nodes) = (cluster('a'), [hsm(1), hsm(2)]);
    for (time, strangers) in [(1, &[orphan("a"), orphan("b")][..]), (2, &[orphan("b")])] {
        records.note_oddities(&on, &hsm(1), at(time), strangers).await.unwrap();
        records.note_oddities(&on, &hsm(1), at(time), strangers).await.unwrap();
        records.end_listing(&on, &hsm(1), at(time)).await.unwrap();
    }
    let expected = DriftRecord { hsm: hsm(1), difference: Difference::Odd(orphan("b")), found: at(1) };
    assert_eq!(listed(&records, &on, &nodes).await, [expected]);
    // Another node's listing, or another cluster's, says nothing about this one's.
    records.end_listing(&on, &hsm(2), at(3)).await.unwrap();
    records.end_listing(&cluster('b'), &hsm(1), at(3)).await.unwrap();
    assert_eq!(listed(&records, &on, &nodes).await.len(), 1);
    assert!(listed(&records, &on, &[hsm(2)]).await.is_empty(), "only nodes that are asked about");
    records.end_listing(&on, &hsm(1), at(4)).await.unwrap();
    assert!(listed(&records, &on, &nodes).await.is_empty());
}

#[tokio::test]
async fn odd_attributes_are_told_as_they_were_seen_last_and_only_of_a_key_that_is_the_right_one() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let key = enabled_key(&records, &store).await;
    let cka_id = CkaId::of(key, V1).as_bytes().to_vec();
    let object = ObjectName { class: 4, cka_id, label: "keyway:x".to_owned() };
    let odd = |differing: &str| Oddity::Attributes { object: object.clone(), differing: differing.to_owned() };
    records.note_oddities(&store.cluster, &hsm(1), at(1), &[odd("CKA_WRAP")]).await.unwrap();
    records.note_oddities(&store.cluster, &hsm(1), at(2), &[odd("CKA_COPYABLE")]).await.unwrap();
    let expected = DriftRecord { hsm: hsm(1), difference: Difference::Odd(odd("CKA_COPYABLE")), found: at(1) };
    assert_eq!(listed(&records, &store.cluster, &[hsm(1)]).await, [expected]);
    records.set_presence(key, V1, (&cluster('a'), &hsm(1)), Proof::Different, at(3)).await.unwrap();
    let [told] = &listed(&records, &store.cluster, &[hsm(1)]).await[..] else { panic!("one") };
    assert!(matches!(told.difference, Difference::Unproven { proof: Proof::Different, .. }));
}

#[tokio::test]
async fn what_is_not_proven_on_a_node_is_a_difference_from_the_time_it_was_first_seen_until_it_is() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let (on, nodes) = (store.cluster.clone(), [hsm(1), hsm(2), hsm(3)]);
    records.begin_key(&new_key(&store), &LIMITS).await.unwrap();
    assert!(listed(&records, &on, &nodes).await.is_empty(), "a key that was never acknowledged is missing nowhere");
    let key = enabled_key(&records, &store).await;
    let unproven = |proof| Difference::Unproven { key, version: V1, proof };
    let told = listed(&records, &on, &nodes).await;
    assert_eq!(told, [DriftRecord { hsm: hsm(3), difference: unproven(Proof::Unknown), found: at(2) }]);
    for (time, proof) in [(5, Proof::Missing), (6, Proof::Different)] {
        records.set_presence(key, V1, (&cluster('a'), &hsm(3)), proof, at(time)).await.unwrap();
        let told = listed(&records, &on, &nodes).await;
        assert_eq!(told, [DriftRecord { hsm: hsm(3), difference: unproven(proof), found: at(2) }]);
    }
    let proven = NewProof { key, version: V1, hsm: hsm(3), proof: Proof::Used };
    records.set_presences(&on, &[proven], at(7)).await.unwrap();
    assert!(listed(&records, &on, &nodes).await.is_empty());
    records.doubt_presence(&kmsuser(&on), &hsm(3), at(8)).await.unwrap();
    assert_eq!(listed(&records, &on, &nodes).await[0].found, at(8));
}

#[tokio::test]
async fn pages_of_differences_meet_end_to_end_oldest_first() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let nodes = [hsm(1), hsm(2), hsm(3)];
    for time in 0..6 {
        let key = enabled_key(&records, &store).await;
        records.set_presence(key, V1, (&cluster('a'), &hsm(3)), Proof::Used, at(time)).await.unwrap();
        // Two at each time, and a stranger at the same.
        records.set_presence(key, V1, (&cluster('a'), &hsm(2)), Proof::Missing, at(20 + time / 2)).await.unwrap();
        let stranger = [orphan(&time.to_string())];
        records.note_oddities(&store.cluster, &hsm(1), at(20 + time / 2), &stranger).await.unwrap();
    }
    let all = listed(&records, &store.cluster, &nodes).await;
    assert_eq!(all.len(), 12);
    assert!(all.is_sorted_by_key(|drift| drift.found));
    for limit in [1, 2, 5] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = records.list_drifts(&store.cluster, &nodes, after.as_ref(), limit).await.unwrap();
            let Some((cursor, _)) = page.last() else { break };
            // As it comes back from a caller.
            after = Some(cursor.to_string().parse::<DriftCursor>().unwrap());
            seen.extend(page.into_iter().map(|(_, drift)| drift));
        }
        assert_eq!(seen, all, "{limit} at a time");
    }
    for made_up in ["", "1", "x/1", "1/hsm-1/k/1", "1/2/3"] {
        assert!(made_up.parse::<DriftCursor>().is_err(), "{made_up:?}");
    }
}

#[tokio::test]
async fn keys_of_the_cluster_are_known_by_their_ids_and_others_are_not() {
    let home = Home::new();
    let records = home.open().await;
    let store = connected_store(&records).await;
    let enabled = CkaId::of(enabled_key(&records, &store).await, V1);
    let creating = new_key(&store);
    records.begin_key(&creating, &LIMITS).await.unwrap();
    let creating = CkaId::of(creating.id, V1);
    let strangers =
        [CkaId::of(KeyId::random(), V1), CkaId::of(CkaId::parse(enabled.as_bytes()).unwrap().0, KeyVersion(2))];
    let asked = [enabled, creating, strangers[0], strangers[1]];
    let known = records.known_keys(&kmsuser(&store.cluster), &asked).await.unwrap();
    assert!(known.contains(&enabled) && known.contains(&creating));
    assert!(strangers.iter().all(|stranger| !known.contains(stranger)));
    assert!(!records.known_keys(&kmsuser(&cluster('b')), &asked).await.unwrap().contains(&enabled));
}
