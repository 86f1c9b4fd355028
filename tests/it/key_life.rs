//! A key's life after it was made: its states, its versions, its deletion, and what is said of it.

mod deletion;
mod names;
mod rotation;
mod states;

use tonic::Status;

use crate::rig::{Clients, Rig, pb, reason, refused, wait_async};

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];
/// The key-encryption key and the canary in each token.
const KEYWAYS_OWN: usize = 2;

impl Clients {
    async fn enable(&mut self, key: &str) -> Result<pb::Key, Status> {
        let request = pb::EnableKeyRequest { key_id: key.to_owned() };
        Ok(self.keys.enable_key(request).await?.into_inner().key.expect("it is told"))
    }

    async fn disable(&mut self, key: &str) -> Result<pb::Key, Status> {
        let request = pb::DisableKeyRequest { key_id: key.to_owned() };
        Ok(self.keys.disable_key(request).await?.into_inner().key.expect("it is told"))
    }

    async fn schedule_deletion(&mut self, key: &str, days: i32) -> Result<pb::Key, Status> {
        let request = pb::ScheduleKeyDeletionRequest { key_id: key.to_owned(), pending_window_days: days };
        Ok(self.keys.schedule_key_deletion(request).await?.into_inner().key.expect("it is told"))
    }

    async fn cancel_deletion(&mut self, key: &str) -> Result<pb::Key, Status> {
        let request = pb::CancelKeyDeletionRequest { key_id: key.to_owned() };
        Ok(self.keys.cancel_key_deletion(request).await?.into_inner().key.expect("it is told"))
    }

    async fn try_rotate(&mut self, key: &str, request_id: &str) -> Result<pb::Key, Status> {
        let request = pb::RotateKeyOnDemandRequest { key_id: key.to_owned(), request_id: request_id.to_owned() };
        Ok(self.keys.rotate_key_on_demand(request).await?.into_inner().key.expect("it is told"))
    }

    /// Again, as long as the version before is on its way to the last HSMs.
    async fn rotate(&mut self, key: &str, request_id: &str) -> Result<pb::Key, Status> {
        let clients = self.clone();
        wait_async(|| async {
            let answer = clients.clone().try_rotate(key, request_id).await;
            let comes_back = answer.as_ref().is_err_and(|status| reason(status).1 == "CONFLICT");
            (!comes_back).then_some(answer)
        })
        .await
    }

    async fn described(&mut self, key: &str) -> Result<pb::Key, Status> {
        let request = pb::DescribeKeyRequest { key_id: key.to_owned(), ..Default::default() };
        Ok(self.keys.describe_key(request).await?.into_inner().key.expect("it is told"))
    }

    async fn create_alias(&mut self, name: &str, key: &str) -> Result<pb::Alias, Status> {
        let request = pb::CreateAliasRequest { alias_name: name.to_owned(), target_key_id: key.to_owned() };
        Ok(self.keys.create_alias(request).await?.into_inner().alias.expect("it is told"))
    }

    async fn try_encrypt(&mut self, key: &str) -> Result<Vec<u8>, Status> {
        let request = pb::EncryptRequest { key_id: key.to_owned(), plaintext: b"kept".to_vec(), ..Default::default() };
        Ok(self.crypto.encrypt(request).await?.into_inner().ciphertext)
    }

    /// Waits until nobody knows the key any more.
    async fn until_gone(&mut self, key: &str) {
        let clients = self.clone();
        let status = wait_async(|| async { clients.clone().described(key).await.err() }).await;
        refused("it is gone", Err::<(), _>(status), "NOT_FOUND", "");
    }

    /// What records and HSMs disagree about, in pages of one: so that the pages meet.
    async fn drifts(&mut self, rig: &Rig) -> Vec<pb::Drift> {
        let (mut drifts, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListDriftRequest { cluster_id: rig.cluster_id(), page_size: 1, page_token };
            let page = self.clusters.list_drift(request).await.expect("listed").into_inner();
            drifts.extend(page.drifts);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return drifts;
            }
        }
    }

    /// Waits until records and HSMs agree.
    async fn until_level(&mut self, rig: &Rig) {
        let clients = self.clone();
        wait_async(|| async { clients.clone().drifts(rig).await.is_empty().then_some(()) }).await;
    }
}

impl Rig {
    /// The keys that an HSM holds, looked into past keyway.
    fn keys_on(&self, hsm: &str) -> Vec<String> {
        let labels: Vec<String> = self.objects(hsm).into_iter().map(|object| object.label).collect();
        let (own, keys): (Vec<_>, Vec<_>) =
            labels.into_iter().partition(|label| label == "keyway:kek" || label == "keyway:canary");
        assert_eq!(own.len(), KEYWAYS_OWN, "{hsm}: {own:?}");
        keys
    }
}
