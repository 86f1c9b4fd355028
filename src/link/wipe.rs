//! Which verbs carry PINs, and how they are wiped.

use zeroize::Zeroize;

use super::v1::request::Verb;
use super::v1::{AcceptKek, GiveUser, LogIn, MakeKek, OfferJoin, Request, SealKek, SetPin};

impl Zeroize for Request {
    fn zeroize(&mut self) {
        if let Some(verb) = &mut self.verb {
            verb.zeroize();
        }
    }
}

impl Zeroize for Verb {
    /// PINs alone; what else a verb says stays.
    fn zeroize(&mut self) {
        match self {
            Self::LogIn(LogIn { pin: one }) | Self::OfferJoin(OfferJoin { so_pin: one }) => one.zeroize(),
            Self::AcceptKek(AcceptKek { user_pin, .. }) => user_pin.zeroize(),
            Self::SetPin(SetPin { old_pin: one, new_pin: other })
            | Self::GiveUser(GiveUser { so_pin: one, user_pin: other, .. })
            | Self::MakeKek(MakeKek { so_pin: one, user_pin: other, .. })
            | Self::SealKek(SealKek { so_pin: one, user_pin: other, .. }) => {
                one.zeroize();
                other.zeroize();
            }
            Self::Open(_)
            | Self::Ping(_)
            | Self::Encrypt(_)
            | Self::Decrypt(_)
            | Self::GenerateDataKey(_)
            | Self::GenerateRandom(_)
            | Self::GenerateKey(_)
            | Self::WrapKey(_)
            | Self::UnwrapKey(_)
            | Self::ProveKey(_)
            | Self::DestroyKey(_)
            | Self::ListObjects(_)
            | Self::FindKeys(_)
            | Self::MakeProbe(_)
            | Self::DestroyProvenKey(_)
            | Self::SweepUnfinished(_)
            | Self::CheckToken(_)
            | Self::Sign(_)
            | Self::DecryptOaep(_)
            | Self::TestAbilities(_)
            | Self::Summon(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wiped_request_has_no_pin_and_is_otherwise_what_it_was() {
        let verb = Verb::SealKek(SealKek {
            so_pin: b"so".to_vec(),
            user_pin: b"user".to_vec(),
            kek_cka_id: b"kek".to_vec(),
            ..SealKek::default()
        });
        let mut request = Request { id: 7, remaining_ms: 1, verb: Some(verb) };
        request.zeroize();
        let left = Verb::SealKek(SealKek { kek_cka_id: b"kek".to_vec(), ..SealKek::default() });
        assert_eq!(request, Request { id: 7, remaining_ms: 1, verb: Some(left) });
    }
}
