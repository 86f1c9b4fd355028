//! Everything there is, in the records and in the HSMs: the same before and after what must change nothing.

use super::{Clients, Object, Rig, pb};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Id, name, cluster and how many keys.
    stores: Vec<(String, String, String, i32)>,
    keys: Vec<String>,
    /// Name and target.
    aliases: Vec<(String, String)>,
    /// What each HSM's token holds.
    tokens: Vec<Vec<Object>>,
}

impl Holdings {
    pub async fn of(rig: &Rig, clients: &mut Clients) -> Self {
        let stores = clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default());
        let stores = stores.await.expect("listed").into_inner().key_stores;
        let keys = clients.keys.list_keys(pb::ListKeysRequest::default());
        let keys = keys.await.expect("listed").into_inner().keys;
        let aliases = clients.keys.list_aliases(pb::ListAliasesRequest::default());
        let aliases = aliases.await.expect("listed").into_inner().aliases;
        let hsms = (1..=rig.nodes).map(|number| format!("hsm-{number}"));
        Self {
            stores: stores
                .into_iter()
                .map(|it| (it.key_store_id, it.key_store_name, it.cluster_id, it.key_count))
                .collect(),
            keys: keys.into_iter().map(|key| key.key_id).collect(),
            aliases: aliases.into_iter().map(|it| (it.alias_name, it.target_key_id)).collect(),
            tokens: hsms.map(|hsm| rig.objects(&hsm)).collect(),
        }
    }
}
