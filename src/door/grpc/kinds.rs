//! Key specs, usages and algorithms: between the messages' enums and the model's words, which have the same names.

use tonic::Status;

use crate::model::{EncryptionAlgorithm, KeyKind, KeySpec, KeyUsage, MacAlgorithm, SigningAlgorithm};
use crate::proto::v1 as pb;

use super::status;

/// Both ways between an enum of the contract and one of the model: the contract puts a prefix before the same name.
macro_rules! same_names {
    ($model:ident, $prefix:literal, $tell:ident, $read:ident) => {
        pub(super) fn $tell(value: $model) -> pb::$model {
            pb::$model::from_str_name(&format!(concat!($prefix, "{}"), value.as_str()))
                .expect("a test goes through all of them")
        }

        /// `Ok(None)`: left out. `Err`: no such value.
        fn $read(value: i32) -> Result<Option<$model>, ()> {
            let named = pb::$model::try_from(value).map_err(drop)?;
            if named == pb::$model::Unspecified {
                return Ok(None);
            }
            named.as_str_name().strip_prefix($prefix).and_then($model::parse).map(Some).ok_or(())
        }
    };
}

same_names!(KeySpec, "KEY_SPEC_", key_spec, read_key_spec);
same_names!(KeyUsage, "KEY_USAGE_", key_usage, read_key_usage);
same_names!(EncryptionAlgorithm, "ENCRYPTION_ALGORITHM_", encryption_algorithm, read_encryption_algorithm);
same_names!(SigningAlgorithm, "SIGNING_ALGORITHM_", signing_algorithm, read_signing_algorithm);
same_names!(MacAlgorithm, "MAC_ALGORITHM_", mac_algorithm, read_mac_algorithm);

/// What kind of key is to be made.
pub(super) fn new_kind(spec: i32, usage: i32) -> Result<KeyKind, Status> {
    let spec = read_key_spec(spec).map_err(|()| status::field("key_spec", "is not a key spec"))?;
    let spec = spec.unwrap_or(KeySpec::SymmetricDefault);
    let usage = read_key_usage(usage).map_err(|()| status::field("key_usage", "is not a key usage"))?;
    let usage = usage.or(spec.default_usage()).ok_or_else(|| {
        let usages: Vec<_> = spec.usages().iter().map(|usage| usage.as_str()).collect();
        status::field("key_usage", format!("must be named for {spec}: {}", usages.join(" or ")))
    })?;
    KeyKind::new(spec, usage).ok_or_else(|| {
        status::field_reason("key_usage", "INVALID_KEY_USAGE", format!("{usage} is not compatible with {spec}"))
    })
}

/// What kind of pair is to be made for use outside.
pub(super) fn asked_pair_spec(value: i32) -> Result<KeySpec, Status> {
    match needed(read_key_spec(value), "key_pair_spec")? {
        spec if spec.is_asymmetric() => Ok(spec),
        spec => Err(status::field("key_pair_spec", format!("is one of a pair, which {spec} is not"))),
    }
}

pub(super) fn asked_signing_algorithm(value: i32) -> Result<SigningAlgorithm, Status> {
    needed(read_signing_algorithm(value), "signing_algorithm")
}

pub(super) fn asked_mac_algorithm(value: i32) -> Result<MacAlgorithm, Status> {
    needed(read_mac_algorithm(value), "mac_algorithm")
}

/// `None` when it is left out, which is right for AES keys.
pub(super) fn asked_encryption_algorithm(value: i32) -> Result<Option<EncryptionAlgorithm>, Status> {
    read_encryption_algorithm(value).map_err(|()| status::field("encryption_algorithm", "is not an algorithm"))
}

/// For what is done with AES keys alone, where nothing else is possible and nothing need be said.
pub(super) fn asked_symmetric_algorithm(field: &str, value: i32) -> Result<(), Status> {
    match read_encryption_algorithm(value) {
        Ok(None | Some(EncryptionAlgorithm::SymmetricDefault)) => Ok(()),
        _ => Err(status::field(field, "is SYMMETRIC_DEFAULT: only symmetric keys are re-encrypted from and to")),
    }
}

fn needed<T>(read: Result<Option<T>, ()>, field: &str) -> Result<T, Status> {
    match read {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(status::field(field, "is required")),
        Err(()) => Err(status::field(field, "is none that there is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of the model's, and each of the contract's but the one that says nothing.
    #[test]
    fn the_contract_and_the_model_have_the_same_names() {
        macro_rules! both_ways {
            ($model:ident, $tell:ident, $read:ident) => {
                assert!($model::ALL.iter().all(|it| $read($tell(*it).into()) == Ok(Some(*it))));
                let of_contract = (1..).take_while(|number| pb::$model::try_from(*number).is_ok()).count();
                assert_eq!(of_contract, $model::ALL.len());
                assert_eq!(($read(0), $read(99)), (Ok(None), Err(())));
            };
        }
        both_ways!(KeySpec, key_spec, read_key_spec);
        both_ways!(KeyUsage, key_usage, read_key_usage);
        both_ways!(EncryptionAlgorithm, encryption_algorithm, read_encryption_algorithm);
        both_ways!(SigningAlgorithm, signing_algorithm, read_signing_algorithm);
        both_ways!(MacAlgorithm, mac_algorithm, read_mac_algorithm);
    }

    #[test]
    fn a_usage_must_be_named_and_must_fit_but_for_symmetric_keys() {
        let kind = |spec: pb::KeySpec, usage: pb::KeyUsage| new_kind(spec.into(), usage.into());
        assert_eq!(kind(pb::KeySpec::Unspecified, pb::KeyUsage::Unspecified).unwrap(), KeyKind::AES);
        assert!(kind(pb::KeySpec::Hmac256, pb::KeyUsage::Unspecified).is_err());
        assert!(kind(pb::KeySpec::Hmac256, pb::KeyUsage::SignVerify).is_err());
        assert!(kind(pb::KeySpec::SymmetricDefault, pb::KeyUsage::SignVerify).is_err());
        let kind = kind(pb::KeySpec::Rsa3072, pb::KeyUsage::SignVerify).unwrap();
        assert_eq!((kind.spec(), kind.usage()), (KeySpec::Rsa3072, KeyUsage::SignVerify));
    }
}
