//! HMAC keys.

use super::*;
use crate::rig::refused;

const MACS: [(pb::KeySpec, pb::MacAlgorithm, usize); 4] = [
    (pb::KeySpec::Hmac224, pb::MacAlgorithm::HmacSha224, 28),
    (pb::KeySpec::Hmac256, pb::MacAlgorithm::HmacSha256, 32),
    (pb::KeySpec::Hmac384, pb::MacAlgorithm::HmacSha384, 48),
    (pb::KeySpec::Hmac512, pb::MacAlgorithm::HmacSha512, 64),
];

async fn mac(clients: &Clients, key_id: &str, algorithm: pb::MacAlgorithm) -> Result<pb::GenerateMacResponse, Status> {
    let (key_id, message) = (key_id.to_owned(), b"attack at dawn".to_vec());
    let message_crc32c = Some(crc32c::crc32c(&message));
    let mut request = pb::GenerateMacRequest { key_id, message, message_crc32c, ..Default::default() };
    request.set_mac_algorithm(algorithm);
    Ok(clients.crypto.clone().generate_mac(request).await?.into_inner())
}

fn to_verify(key_id: &str, algorithm: pb::MacAlgorithm, mac: &[u8]) -> pb::VerifyMacRequest {
    let (key_id, message, mac) = (key_id.to_owned(), b"attack at dawn".to_vec(), mac.to_vec());
    let mut request = pb::VerifyMacRequest { key_id, message, mac, ..Default::default() };
    request.set_mac_algorithm(algorithm);
    request
}

#[tokio::test]
async fn a_mac_that_one_hsm_makes_is_the_others_too_and_no_changed_one_passes() {
    let (rig, clients, store) = Rig::new().connected().await;
    clients.clone().all_healthy(&store).await;
    let mut made = Vec::new();
    for (spec, algorithm, length) in MACS {
        let key = key_of(&clients, &store, spec, pb::KeyUsage::GenerateVerifyMac).await;
        assert_eq!((key.key_spec(), key.key_usage()), (spec, pb::KeyUsage::GenerateVerifyMac));
        assert_eq!(key.mac_algorithms().collect::<Vec<_>>(), [algorithm]);
        assert_eq!((key.uses, key.use_limit), (0, 0), "its uses have no limit");
        let told = mac(&clients, &key.key_id, algorithm).await.unwrap();
        assert_eq!((told.mac.len(), told.mac_algorithm()), (length, algorithm));
        assert!(told.verified_message_crc32c && told.mac_crc32c == crc32c::crc32c(&told.mac));
        made.push((key.key_id, algorithm, told.mac));
    }
    on_each_hsm_alone(&rig, &clients, &store, |hsm| {
        let (clients, made) = (clients.clone(), made.clone());
        async move {
            for (key_id, algorithm, mac) in made {
                let request = to_verify(&key_id, algorithm, &mac);
                let valid = clients.crypto.clone().verify_mac(request).await;
                let valid = valid.unwrap_or_else(|status| panic!("{hsm} alone: {algorithm:?}: {status}")).into_inner();
                assert!(valid.mac_valid && valid.key_version == 1);
            }
        }
    })
    .await;
    for (key_id, algorithm, mac) in made {
        let mut crypto = clients.crypto.clone();
        let mut changed = to_verify(&key_id, algorithm, &mac);
        changed.mac[5] ^= 1;
        refused("a changed MAC", crypto.verify_mac(changed).await, "KMS_INVALID_MAC", "mac");
        let cut = to_verify(&key_id, algorithm, &mac[..mac.len() - 1]);
        refused("a MAC cut short", crypto.verify_mac(cut).await, "KMS_INVALID_MAC", "mac");
        let mut other = to_verify(&key_id, algorithm, &mac);
        other.message.push(b'!');
        refused("another message", crypto.verify_mac(other).await, "KMS_INVALID_MAC", "mac");
    }
}
