//! What the HSM can do with keys of each spec: make, wrap under the key-encryption key, unwrap and use them.
//!
//! A list of mechanisms does not tell it: SoftHSM2 has Ed25519 and cannot wrap it. So each kind of key is tried, with keys of
//! this session that are destroyed at once. Of RSA keys the smallest that may be made is, since large ones take seconds; which
//! sizes there are, the mechanism tells.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKR_FUNCTION_FAILED, CKR_GENERAL_ERROR};

use crate::model::{
    EncryptionAlgorithm, Hash, KeyKind, KeySpec, KeyUsage, Material, PublicKey, SignatureScheme, SigningAlgorithm,
};

use super::fault::{After, Bucket, Kind};
use super::mechanism::{self, Making};
use super::{Fault, Session, key};

/// The smallest RSA key that is tried, where the HSM makes such.
const SMALLEST_RSA: u64 = 1_024;
const TRIAL_LABEL: &[u8] = b"keyway:trial";
/// `edwards25519`, as `CKA_EC_PARAMS` has it.
const EDWARDS25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];
/// CKM_ML_KEM_KEY_PAIR_GEN and CKM_ML_DSA_KEY_PAIR_GEN of PKCS#11 3.2.
const ML_KEM_KEY_PAIR_GEN: u64 = 0x0f;
const ML_DSA_KEY_PAIR_GEN: u64 = 0x1c;
/// What is said of what the HSM might do and this release of keyway does not use.
const NOT_USED: &str = "support in this release of keyway";

/// Whether the HSM can do something with keys.
#[derive(Debug)]
pub struct Ability {
    /// A key spec or an algorithm, by AWS's name.
    pub of: &'static str,
    /// What is missing for it, if anything.
    pub missing: Option<String>,
}

impl Session {
    /// Tries what the HSM can do. A fault of the session or of the node tells nothing, and is returned.
    pub fn abilities(&mut self, kek: &[u8]) -> Result<Vec<Ability>, Fault> {
        let listed = self.token.mechanisms()?;
        let mut abilities = Vec::new();
        for spec in KeySpec::ALL {
            let missing = match spec.material() {
                // The canary is one.
                Material::Aes => None,
                Material::Hmac(_) | Material::Ec(_) => self.outcome(|session| session.try_kind(kek, spec))?.err(),
                // Below, all sizes together.
                Material::Rsa(_) => continue,
                Material::Edwards => {
                    let tried = self.outcome(|session| session.try_edwards(kek))?;
                    Some(tried.err().unwrap_or_else(|| NOT_USED.to_owned()))
                }
                Material::MlDsa => Some(unlisted("CKM_ML_DSA_KEY_PAIR_GEN", ML_DSA_KEY_PAIR_GEN, &listed)),
                Material::MlKem => Some(unlisted("CKM_ML_KEM_KEY_PAIR_GEN", ML_KEM_KEY_PAIR_GEN, &listed)),
            };
            abilities.push(Ability { of: spec.as_str(), missing });
        }
        self.try_rsa(kek, &mut abilities)?;
        Ok(abilities)
    }

    /// What `attempt` brings, or what is missing for it. What may be the session's trouble, or a moment's, is tried once more
    /// in another one.
    fn outcome<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self) -> Result<T, Fault>,
    ) -> Result<Result<T, String>, Fault> {
        let mut fault = match attempt(self) {
            Ok(done) => return Ok(Ok(done)),
            Err(fault) => fault,
        };
        if says_anything(&fault) {
            self.spoil(&fault);
            // Where no more sessions are to be had, this one must do.
            let mut fresh = self.token.open_session().ok().map(|fresh| fresh.timed_by(self.stopwatch.clone()));
            let session = fresh.as_mut().unwrap_or(self);
            fault = match attempt(session) {
                Ok(done) => return Ok(Ok(done)),
                Err(fault) => fault,
            };
            if says_anything(&fault) {
                session.spoil(&fault);
                // The token is in trouble, and may be able to do it when it is well.
                session.is_logged_in()?;
            }
        }
        if !says_no(&fault) {
            return Err(fault);
        }
        self.spoil(&fault);
        Ok(Err(match fault.function.as_ref() {
            "" => fault.detail.to_string(),
            function => format!("{function}, which returns {}", fault.detail),
        }))
    }

    /// Does what the fault asks for, but not for all sessions: what it came of is a key of this one.
    fn spoil(&mut self, fault: &Fault) {
        self.suffer(&Fault { session: fault.session.min(After::Reopen), ..fault.clone() });
    }

    fn try_kind(&mut self, kek: &[u8], spec: KeySpec) -> Result<(), Fault> {
        let kind = *spec.usages().first().expect("every spec has a usage");
        let kind = KeyKind::new(spec, kind).expect("it is one of the spec's");
        let (making, template) = (Making::of(kind)?, trial_key(kind));
        self.with_trial(kek, (spec.material(), making, template), |session, key, public_key| {
            session.try_use(kind, key, public_key)
        })
    }

    /// The specs and algorithms of RSA: each size's making by what the mechanism tells, and all else with one small key.
    fn try_rsa(&mut self, kek: &[u8], abilities: &mut Vec<Ability>) -> Result<(), Fault> {
        let sizes = self.outcome(|session| {
            let mechanism = session.token.mechanism_info(MechanismType::RSA_PKCS_KEY_PAIR_GEN)?;
            Ok((mechanism.min_key_size() as u64, mechanism.max_key_size() as u64))
        })?;
        let (sizes, missing) = match sizes {
            Ok(sizes) => (sizes, self.try_rsa_pairs(kek, sizes.0.max(SMALLEST_RSA), abilities)?),
            Err(missing) => ((0, 0), Some(missing)),
        };
        for spec in KeySpec::ALL {
            let Material::Rsa(bits) = spec.material() else { continue };
            let missing = missing.clone().or_else(|| too_large(bits as u64, sizes));
            abilities.push(Ability { of: spec.as_str(), missing });
        }
        Ok(())
    }

    /// Tries both usages with one pair, since its primes are what takes long; with a pair each, where no pair may have both,
    /// which no key that is kept has.
    fn try_rsa_pairs(&mut self, kek: &[u8], bits: u64, abilities: &mut Vec<Ability>) -> Result<Option<String>, Fault> {
        let both = [KeyUsage::SignVerify, KeyUsage::EncryptDecrypt];
        if let Ok(told) = self.try_rsa_pair(kek, bits, &both)? {
            abilities.extend(told);
            return Ok(None);
        }
        let mut lacking = None;
        for usage in both {
            match self.try_rsa_pair(kek, bits, &[usage])? {
                Ok(told) => abilities.extend(told),
                Err(missing) => lacking = lacking.or(Some(missing)),
            }
        }
        Ok(lacking)
    }

    fn try_rsa_pair(
        &mut self,
        kek: &[u8],
        bits: u64,
        usages: &[KeyUsage],
    ) -> Result<Result<Vec<Ability>, String>, Fault> {
        let (signs, encrypts) = (usages.contains(&KeyUsage::SignVerify), usages.contains(&KeyUsage::EncryptDecrypt));
        self.outcome(|session| {
            let kind = KeyKind::new(KeySpec::Rsa2048, usages[0]).expect("RSA has both usages");
            let template = trial_key(kind).into_iter().map(|attribute| match attribute {
                Attribute::Sign(_) => Attribute::Sign(signs),
                Attribute::Decrypt(_) => Attribute::Decrypt(encrypts),
                other => other,
            });
            let pair = (kind.spec().material(), Making::rsa(bits, (signs, encrypts)), template.collect());
            session.with_trial(kek, pair, |session, key, public_key| {
                let mut told = Vec::new();
                if signs {
                    session.try_rsa_signing(key, &mut told)?;
                }
                if encrypts {
                    session.try_rsa_decrypting(key, public_key, &mut told)?;
                }
                Ok(told)
            })
        })
    }

    fn try_rsa_signing(&mut self, key: ObjectHandle, abilities: &mut Vec<Ability>) -> Result<(), Fault> {
        for scheme in [SignatureScheme::Pkcs1, SignatureScheme::Pss] {
            // A small key has no room for the longest digests; the mechanism takes them all or none.
            let algorithms = SigningAlgorithm::ALL.into_iter();
            let algorithm = algorithms.clone().find(|it| it.of_digest() == Some((scheme, Hash::Sha256)));
            let algorithm = algorithm.expect("both are with SHA-256");
            let digest = Hash::Sha256.of(TRIAL_LABEL);
            let missing = self.outcome(|session| session.sign_with(key, algorithm, &digest).map(drop))?.err();
            let of_scheme = algorithms.filter(|it| it.of_digest().is_some_and(|(other, _)| other == scheme));
            abilities.extend(of_scheme.map(|it| Ability { of: it.as_str(), missing: missing.clone() }));
        }
        Ok(())
    }

    fn try_rsa_decrypting(
        &mut self,
        key: ObjectHandle,
        public_key: &PublicKey,
        abilities: &mut Vec<Ability>,
    ) -> Result<(), Fault> {
        for algorithm in EncryptionAlgorithm::ALL {
            let Some(hash) = algorithm.oaep_hash() else { continue };
            let missing = self.outcome(|session| {
                match public_key.encrypt_oaep(hash, TRIAL_LABEL) {
                    Some(encrypted) => {
                        let decrypted = session.decrypt_oaep_with(key, algorithm, &encrypted)?;
                        if decrypted.as_slice() == TRIAL_LABEL { Ok(()) } else { Err(wrong()) }
                    }
                    // A size that only a trial has, and to which nothing is encrypted outside.
                    None => session.try_form(key, algorithm),
                }
            })?;
            abilities.push(Ability { of: algorithm.as_str(), missing: missing.err() });
        }
        Ok(())
    }

    /// Whether the HSM takes the algorithm, with a ciphertext that is none.
    fn try_form(&mut self, key: ObjectHandle, algorithm: EncryptionAlgorithm) -> Result<(), Fault> {
        match self.decrypt_oaep_with(key, algorithm, &[1; SMALLEST_RSA as usize / 8]) {
            // It had begun.
            Err(fault) if fault.function == "C_Decrypt" && says_no(&fault) => {
                self.spoil(&fault);
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn try_use(&mut self, kind: KeyKind, key: ObjectHandle, public_key: &PublicKey) -> Result<(), Fault> {
        if let Some(algorithm) = kind.mac_algorithms().first() {
            let mac = self.mac_with(key, *algorithm, TRIAL_LABEL)?;
            return if mac.len() == algorithm.hash().digest_len() { Ok(()) } else { Err(wrong()) };
        }
        let algorithm = mechanism::probing(kind).ok_or_else(wrong)?;
        let (_, hash) = algorithm.of_digest().ok_or_else(wrong)?;
        let digest = hash.of(TRIAL_LABEL);
        let signature = self.sign_with(key, algorithm, &digest)?;
        if public_key.verifies(kind.spec(), algorithm, &digest, &signature) { Ok(()) } else { Err(wrong()) }
    }

    /// Makes a key of this session, wraps it, unwraps it as another, and does `work` with that one.
    fn with_trial<T>(
        &mut self,
        kek: &[u8],
        (material, making, template): (Material, Making, Vec<Attribute>),
        work: impl FnOnce(&mut Self, ObjectHandle, &PublicKey) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let token = self.token.clone();
        // Before anything is locked: looking for the key-encryption key takes the same lock.
        let kek = self.with_kek(kek, |_, kek| Ok(kek))?;
        let _alone = token.changing(&self.stopwatch);
        let (made, public_key) = match making {
            Making::Secret { mechanism, bytes } => {
                let mut template = template.clone();
                template.push(Attribute::ValueLen(bytes.into()));
                (self.raw.generate_key(&mechanism, &template)?, PublicKey::from_der(Vec::new()))
            }
            Making::Pair { mechanism, public } => {
                let (public, private) = self.make_pair(material, &mechanism, &public, &template)?;
                (private, public)
            }
        };
        let wrapped = self.raw.wrap_key(&Mechanism::AesKeyWrapPad, kek, made).map_err(Fault::from);
        self.then_destroy(made, wrapped)
            .and_then(|wrapped| Ok(self.raw.unwrap_key(&Mechanism::AesKeyWrapPad, kek, &wrapped, &template)?))
            .and_then(|again| {
                let worked = work(self, again, &public_key);
                self.then_destroy(again, worked)
            })
    }

    /// Ed25519 is only looked at: making and wrapping it, which is where HSMs differ.
    fn try_edwards(&mut self, kek: &[u8]) -> Result<(), Fault> {
        let token = self.token.clone();
        let kek = self.with_kek(kek, |_, kek| Ok(kek))?;
        let _alone = token.changing(&self.stopwatch);
        let public = [
            Attribute::Token(false),
            Attribute::Private(false),
            Attribute::EcParams(EDWARDS25519.to_vec()),
            Attribute::Verify(true),
        ];
        let private = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::EC_EDWARDS),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::WrapWithTrusted(true),
            Attribute::Unwrap(false),
            Attribute::Label(TRIAL_LABEL.to_vec()),
        ];
        let (public, private) = self.raw.generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)?;
        let wrapped = self.raw.wrap_key(&Mechanism::AesKeyWrapPad, kek, private).map_err(Fault::from);
        let wrapped = self.then_destroy(private, wrapped);
        self.then_destroy(public, wrapped).map(drop)
    }

    /// Unless its handle may be another object's by now: then it is gone.
    fn then_destroy<T>(&self, object: ObjectHandle, result: Result<T, Fault>) -> Result<T, Fault> {
        if result.as_ref().is_err_and(|fault| fault.session == After::Renew) {
            return result;
        }
        let destroyed = self.raw.destroy_object(object).map_err(Fault::from);
        // What cannot be destroyed goes with the session.
        let destroyed = destroyed.map_err(|fault| Fault { session: fault.session.max(After::Reopen), ..fault });
        let value = result?;
        destroyed.map(|()| value)
    }
}

fn trial_key(kind: KeyKind) -> Vec<Attribute> {
    let mut template = key::guarded(kind, true);
    template.extend([Attribute::Token(false), Attribute::Label(TRIAL_LABEL.to_vec())]);
    template
}

/// Whether a fault says that the HSM cannot do this, and not that it, or the session, is in trouble. Some libraries say
/// both with one word; nothing else of the session's work fails then.
fn says_no(fault: &Fault) -> bool {
    fault.bucket == Bucket::Input || says_anything(fault)
}

/// Whether it is a word with which libraries say whatever they like.
const fn says_anything(fault: &Fault) -> bool {
    matches!(fault.ckr, CKR_GENERAL_ERROR | CKR_FUNCTION_FAILED)
}

/// Some libraries tell no sizes.
fn too_large(bits: u64, (least, most): (u64, u64)) -> Option<String> {
    let is_made = most == 0 || (least..=most).contains(&bits);
    (!is_made).then(|| format!("a modulus of {bits} bits: it makes {least} to {most}"))
}

fn wrong() -> Fault {
    Fault::refused(Bucket::Input, Kind::Unsupported, "a right answer of a key that was wrapped and unwrapped")
}

fn unlisted(name: &str, number: u64, listed: &[u64]) -> String {
    if listed.contains(&number) { NOT_USED.to_owned() } else { format!("{name} (0x{number:x})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rsa_key_is_too_large_only_where_sizes_are_told() {
        assert_eq!(too_large(4_096, (0, 0)), None);
        assert_eq!(too_large(4_096, (512, 16_384)), None);
        assert!(too_large(4_096, (512, 3_072)).unwrap().contains("512 to 3072"));
        assert!(too_large(2_048, (3_072, 4_096)).is_some());
    }
}
