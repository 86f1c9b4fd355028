//! Keys beside AES: what the HSMs can do is found out and told, each kind is made on several HSMs, and what they do there
//! others can check.

mod data_key_pairs;
mod macs;
mod refusals;
mod rsa;
mod signatures;

use keyway::model::{KeyKind, KeySpec, KeyUsage, Material};
use tonic::Status;

use crate::rig::{Clients, Rig, pb, wait_async};

/// What SoftHSM2 2.6.1 makes, wraps, unwraps and uses.
const DONE: [pb::KeySpec; 12] = [
    pb::KeySpec::SymmetricDefault,
    pb::KeySpec::Rsa2048,
    pb::KeySpec::Rsa3072,
    pb::KeySpec::Rsa4096,
    pb::KeySpec::EccNistP256,
    pb::KeySpec::EccNistP384,
    pb::KeySpec::EccNistP521,
    pb::KeySpec::EccSecgP256k1,
    pb::KeySpec::Hmac224,
    pb::KeySpec::Hmac256,
    pb::KeySpec::Hmac384,
    pb::KeySpec::Hmac512,
];

async fn try_key_of(clients: &Clients, store: &str, spec: pb::KeySpec, usage: pb::KeyUsage) -> Result<pb::Key, Status> {
    let mut request = pb::CreateKeyRequest { key_store_id: store.to_owned(), ..Default::default() };
    request.set_key_spec(spec);
    request.set_key_usage(usage);
    // On a busy machine primes are long in coming.
    let mut request = tonic::Request::new(request);
    request.set_timeout(std::time::Duration::from_secs(120));
    Ok(clients.keys.clone().create_key(request).await?.into_inner().key.expect("it is told"))
}

async fn key_of(clients: &Clients, store: &str, spec: pb::KeySpec, usage: pb::KeyUsage) -> pb::Key {
    try_key_of(clients, store, spec, usage).await.unwrap_or_else(|status| panic!("{spec:?} {usage:?}: {status}"))
}

async fn public_key(clients: &Clients, key_id: &str) -> Result<pb::GetPublicKeyResponse, Status> {
    let request = pb::GetPublicKeyRequest { key_id: key_id.to_owned(), grant_tokens: Vec::new() };
    Ok(clients.keys.clone().get_public_key(request).await?.into_inner())
}

/// Leaves one HSM of the cluster in service, each in turn, and has it do something by itself.
async fn on_each_hsm_alone<F: Future<Output = ()>>(
    rig: &Rig,
    clients: &Clients,
    store: &str,
    work: impl Fn(String) -> F,
) {
    let hsms = ["hsm-1", "hsm-2", "hsm-3"];
    for alone in hsms {
        for hsm in hsms.into_iter().filter(|hsm| *hsm != alone) {
            clients.clone().drain_hsm(&rig.cluster_id(), store, hsm).await;
        }
        work(alone.to_owned()).await;
        for hsm in hsms.into_iter().filter(|hsm| *hsm != alone) {
            clients.clone().resume_hsm(&rig.cluster_id(), hsm, false).await;
        }
        clients.clone().all_healthy(store).await;
    }
}

#[tokio::test]
async fn a_cluster_tells_the_key_specs_that_its_hsms_can_make_copy_and_use() {
    let (_rig, mut clients, _store) = Rig::new().nodes(2).zones(2).connected().await;
    let told = wait_async(|| {
        let mut clusters = clients.clusters.clone();
        async move {
            let told = clusters.describe_clusters(pb::DescribeClustersRequest::default()).await.ok()?.into_inner();
            let specs: Vec<_> = told.clusters[0].key_specs().collect();
            (specs.len() > 1).then_some(specs)
        }
    })
    .await;
    assert_eq!(told, DONE);
    let none = pb::DescribeClustersRequest::default();
    assert_eq!(clients.clusters.describe_clusters(none).await.unwrap().into_inner().clusters.len(), 1);
}

/// The table of the document is the model's, row by row, and its last column is what SoftHSM2 was found to do.
#[test]
fn the_documented_table_of_specs_usages_and_algorithms_is_the_one_in_force() {
    let document = include_str!("../../docs/keys-and-algorithms.md");
    let rows = document.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        KeySpec::parse(cells[0]).filter(|_| cells.len() == 4 && KeyUsage::parse(cells[1]).is_some()).map(|_| cells)
    });
    let told: Vec<_> = rows.map(|cells| cells.join(" | ")).collect();
    let expected: Vec<_> = KeyKind::all()
        .map(|kind| {
            let (encryption, signing) = (kind.encryption_algorithms().iter(), kind.signing_algorithms().iter());
            let mac = kind.mac_algorithms().iter().map(|it| it.as_str());
            let names = encryption.map(|it| it.as_str()).chain(signing.map(|it| it.as_str())).chain(mac);
            let done = DONE.iter().any(|spec| spec.as_str_name() == format!("KEY_SPEC_{}", kind.spec()));
            let on_softhsm2 = match (done, kind.usage(), kind.spec().material()) {
                (true, KeyUsage::EncryptDecrypt, Material::Rsa(_)) => "with SHA-1",
                (true, KeyUsage::KeyAgreement, _) | (false, _, _) => "no",
                (true, _, _) => "yes",
            };
            [kind.spec().as_str(), kind.usage().as_str(), &names.collect::<Vec<_>>().join(", "), on_softhsm2]
                .join(" | ")
        })
        .collect();
    assert_eq!(told, expected);
}
