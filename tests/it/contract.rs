//! Freezes the public contract: what was released keeps its names and numbers for all of v1.
//!
//! `tests/golden/keyway.v1.binpb` is the released descriptor set. What stands in it may be added to,
//! and nothing in it may go, move or change.

use std::collections::BTreeMap;
use std::path::PathBuf;

use prost::Message;
use prost_types::field_descriptor_proto::Label;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const HOW_TO_ADD: &str = "The public contract grew. When that is meant, write it into the golden file with\n\
    \x20   UPDATE_GOLDEN=1 cargo test --test it contract\n\
    and commit tests/golden/keyway.v1.binpb beside the change.";
const HOW_TO_KEEP: &str = "The public contract broke: clients that were built before it would fail. Put back what is \
    missing; deprecate it instead of removing it, and give what is new a new name and number. Only before the first \
    release may tests/golden/keyway.v1.binpb be removed and made anew with UPDATE_GOLDEN=1.";

#[test]
fn the_released_contract_is_kept() {
    let served = ours(FileDescriptorSet::decode(keyway::proto::DESCRIPTOR_SET).expect("our own descriptors decode"));
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/keyway.v1.binpb");
    let released = match std::fs::read(&golden) {
        Ok(bytes) => FileDescriptorSet::decode(&*bytes).expect("the golden file decodes"),
        Err(_) => FileDescriptorSet::default(),
    };
    let Difference { broken, added } = difference(&released, &served);
    assert!(broken.is_empty(), "{HOW_TO_KEEP}\n\n{}", broken.join("\n"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(golden.parent().expect("tests/golden")).expect("a directory of ours");
        std::fs::write(&golden, served.encode_to_vec()).expect("a file of ours");
    } else {
        assert!(added.is_empty(), "{HOW_TO_ADD}\n\n{}", added.join("\n"));
    }
}

#[test]
fn removing_renumbering_and_retyping_break_the_contract_and_adding_does_not() {
    let released = ours(FileDescriptorSet::decode(keyway::proto::DESCRIPTOR_SET).expect("our own descriptors decode"));
    let message = |set: &mut FileDescriptorSet, change: fn(&mut DescriptorProto)| {
        let messages = set.file.iter_mut().flat_map(|file| &mut file.message_type);
        let request = messages.into_iter().find(|it| it.name() == "EncryptRequest");
        change(request.expect("there is one"));
    };
    let breaks: [fn(&mut DescriptorProto); 4] = [
        |it| drop(it.field.pop()),
        |it| it.field[0].number = Some(99),
        |it| it.field[0].name = Some("other".to_owned()),
        |it| it.field[0].label = Some(Label::Repeated.into()),
    ];
    for change in breaks {
        let mut changed = released.clone();
        message(&mut changed, change);
        assert!(!difference(&released, &changed).broken.is_empty());
    }
    let mut grown = released.clone();
    message(&mut grown, |it| {
        let number = Some(1_000);
        let name = Some("new".to_owned());
        it.field.push(FieldDescriptorProto { number, name, ..it.field[0].clone() });
    });
    let Difference { broken, added } = difference(&released, &grown);
    assert_eq!((broken.len(), added.len()), (0, 1), "{broken:?} {added:?}");
}

/// Only our own files: what google and grpc publish, they keep.
fn ours(mut set: FileDescriptorSet) -> FileDescriptorSet {
    set.file.retain(|file| file.name().starts_with("keyway/v1/"));
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set.file.sort_by(|a, b| a.name().cmp(b.name()));
    set
}

struct Difference {
    broken: Vec<String>,
    added: Vec<String>,
}

fn difference(released: &FileDescriptorSet, served: &FileDescriptorSet) -> Difference {
    let (released, served) = (facts(released), facts(served));
    let broken = released.iter().filter_map(|(what, was)| match served.get(what) {
        None => Some(format!("  {what} is gone; it was {was}")),
        Some(is) if is != was => Some(format!("  {what} was {was} and is {is}")),
        Some(_) => None,
    });
    let added = served.iter().filter(|(what, _)| !released.contains_key(*what));
    Difference { broken: broken.collect(), added: added.map(|(what, is)| format!("  {what}: {is}")).collect() }
}

/// Everything clients rely on, by what never changes of it: a field by its number, an rpc by its name.
fn facts(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for file in &set.file {
        let options = file.options.as_ref();
        let names = options.map(|it| (it.go_package(), it.java_package(), it.csharp_namespace()));
        facts.insert(format!("file {}", file.name()), format!("package {} with {names:?}", file.package()));
        in_file(file, &mut facts);
    }
    facts
}

fn in_file(file: &FileDescriptorProto, facts: &mut BTreeMap<String, String>) {
    for it in &file.message_type {
        facts.insert(format!("message {}", it.name()), format!("in {}", file.name()));
        message(it.name(), it, facts);
    }
    for it in &file.enum_type {
        facts.insert(format!("enum {}", it.name()), format!("in {}", file.name()));
        enumeration(it.name(), it, facts);
    }
    for it in &file.service {
        facts.insert(format!("service {}", it.name()), format!("in {}", file.name()));
        service(it, facts);
    }
}

fn message(name: &str, message_type: &DescriptorProto, facts: &mut BTreeMap<String, String>) {
    for field in &message_type.field {
        let oneof = field
            .oneof_index
            .and_then(|index| usize::try_from(index).ok())
            .map_or("", |index| message_type.oneof_decl[index].name());
        let shape = format!(
            "{} {:?} {:?} {}, oneof {oneof:?}, in JSON {}",
            field.name(),
            field.label(),
            field.r#type(),
            field.type_name(),
            field.json_name()
        );
        facts.insert(format!("field {name} #{}", field.number()), shape);
    }
    for nested in &message_type.nested_type {
        message(&format!("{name}.{}", nested.name()), nested, facts);
    }
    for nested in &message_type.enum_type {
        enumeration(&format!("{name}.{}", nested.name()), nested, facts);
    }
}

fn enumeration(name: &str, enum_type: &EnumDescriptorProto, facts: &mut BTreeMap<String, String>) {
    for value in &enum_type.value {
        facts.insert(format!("value {name} #{}", value.number()), value.name().to_owned());
    }
}

fn service(service: &ServiceDescriptorProto, facts: &mut BTreeMap<String, String>) {
    let stream = |streaming| if streaming { "stream " } else { "" };
    for method in &service.method {
        let shape = format!(
            "({}{}) returns ({}{})",
            stream(method.client_streaming()),
            method.input_type(),
            stream(method.server_streaming()),
            method.output_type()
        );
        facts.insert(format!("rpc {}.{}", service.name(), method.name()), shape);
    }
}
