//! Every field of every request at the ends of its range, the others as they should be: an answer comes back,
//! with details when it is a refusal, and nobody else notices.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use tonic_types::StatusExt;

use crate::rig::generic::{Generic, Reflection};
use crate::rig::{Rig, pb};

/// What fields of these names hold in a request that is right.
type Right<'a> = [(&'a str, Value)];

#[tokio::test]
async fn no_field_at_the_end_of_its_range_breaks_a_connection_or_goes_without_an_answer() {
    let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
    let key_id = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key_id, b"still there").await;
    let right = [
        ("key_store_id", Value::String(store.clone())),
        ("key_id", Value::String(key_id.clone())),
        ("target_key_id", Value::String(key_id.clone())),
        ("alias_name", Value::String("alias/new".to_owned())),
        ("cluster_ids", Value::List(vec![Value::String(rig.cluster_id())])),
        ("trust_anchor_certificate", Value::String(rig.trust_anchor())),
        ("key_store_password", Value::String(rig.password())),
        ("plaintext", Value::Bytes(b"x".to_vec().into())),
        ("ciphertext", Value::Bytes(ciphertext.clone().into())),
        ("number_of_bytes", Value::I32(32)),
    ];
    let generic = Generic::learn(&rig.tcp(), Reflection::V1).await;
    let mut asked = 0;
    let mut methods = generic.unary_methods();
    // To drain for no time at all is allowed, and so is a key's end: they leave the others nothing to work with.
    methods.sort_by_key(|method| ["ScheduleKeyDeletion", "DisableKey", "DisconnectKeyStore"].contains(&method.name()));
    for method in methods {
        for request in extreme_requests(&method.input(), &right) {
            let told = format!("{request:?}");
            if let Err(status) = generic.send(&method, request).await {
                let details = status.get_error_details();
                let reason = details.error_info().map(|info| info.reason.as_str());
                let explained = reason.is_some_and(|reason| reason != "KMS_INTERNAL");
                assert!(explained, "{} {told:.300}: {status:?}", method.full_name());
            }
            asked += 1;
        }
    }
    assert!(asked > 500, "only {asked} requests were made");
    clients.settled(&store).await;
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
    let cancel = pb::CancelKeyDeletionRequest { key_id: key_id.clone() };
    clients.keys.cancel_key_deletion(cancel).await.expect("its window is long");
    clients.keys.enable_key(pb::EnableKeyRequest { key_id }).await.expect("it is disabled then");
    assert_eq!(clients.decrypt(&ciphertext).await.expect("nothing was lost"), b"still there");
    for node in clients.settled(&store).await.nodes {
        assert_eq!((node.health(), node.worker_restarts), (pb::HsmHealth::Healthy, 0), "{node:?}");
    }
}

/// One request for each end of each field's range.
fn extreme_requests(message: &MessageDescriptor, right: &Right<'_>) -> Vec<DynamicMessage> {
    let mut requests = Vec::new();
    for field in message.fields() {
        for value in extremes(&field) {
            let mut request = DynamicMessage::new(message.clone());
            for (name, value) in right {
                if let Some(known) = message.get_field_by_name(name) {
                    request.set_field(&known, value.clone());
                }
            }
            request.set_field(&field, value);
            requests.push(request);
        }
    }
    requests
}

fn extremes(field: &FieldDescriptor) -> Vec<Value> {
    if field.is_map() {
        let pair = |name: String, text: String| Value::Map([(MapKey::String(name), Value::String(text))].into());
        return vec![pair(String::new(), String::new()), pair("k".into(), "v".repeat(50_000))];
    }
    let single = extremes_of(&field.kind());
    if field.is_list() {
        let many = single.first().map(|value| Value::List(vec![value.clone(); 2_000]));
        return single.into_iter().map(|value| Value::List(vec![value])).chain(many).collect();
    }
    single
}

fn extremes_of(kind: &Kind) -> Vec<Value> {
    match kind {
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => [i32::MIN, -1, 0, i32::MAX].map(Value::I32).into(),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => [i64::MIN, -1, 0, i64::MAX].map(Value::I64).into(),
        Kind::Uint32 | Kind::Fixed32 => [0, u32::MAX].map(Value::U32).into(),
        Kind::Uint64 | Kind::Fixed64 => [0, u64::MAX].map(Value::U64).into(),
        Kind::Float => [f32::NAN, f32::MAX].map(Value::F32).into(),
        Kind::Double => [f64::NAN, f64::MAX].map(Value::F64).into(),
        Kind::Enum(_) => [i32::MIN, -1, i32::MAX].map(Value::EnumNumber).into(),
        Kind::Bytes => [Vec::new(), vec![0xff; 600_000]].map(|bytes| Value::Bytes(bytes.into())).into(),
        Kind::String => {
            ["", "\0", "\u{202e}🔑%s\r\n", &"x".repeat(600_000)].map(|text| Value::String(text.to_owned())).into()
        }
        Kind::Message(message) => extreme_requests(message, &[]).into_iter().take(20).map(Value::Message).collect(),
    }
}
