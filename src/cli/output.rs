//! What a command prints: tables for people, proto3 JSON for programs, notes on stderr.
//!
//! Nothing here panics when the reader has left, as `println!` would.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::failure::Failure;
use super::named::Named;
use super::table::Paint;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For programs: proto3 JSON as grpcurl prints it, errors on stderr too
    Json,
}

/// How JSON is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As grpcurl prints one message.
    Indented,
    /// One message of a stream.
    Line,
}

impl Output {
    /// Prints a response: as it is, or as the text people get.
    pub(super) fn show<M: Named>(self, message: &M, text: impl FnOnce(&M, Paint) -> String) -> Result<(), Failure> {
        match self {
            Self::Table => stdout(text(message, paint(&std::io::stdout())).as_bytes()),
            Self::Json => stdout(json(message, Layout::Indented)?.as_bytes()),
        }
    }

    /// Prints one message of a stream; in JSON, on one line.
    pub(super) fn show_next<M: Named>(
        self,
        message: &M,
        text: impl FnOnce(&M, Paint) -> String,
    ) -> Result<(), Failure> {
        match self {
            Self::Table => self.show(message, text),
            Self::Json => stdout(json(message, Layout::Line)?.as_bytes()),
        }
    }
}

pub(super) fn stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// A line on stderr. That nobody reads it is no reason to stop.
pub(super) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

pub(super) fn failure(failure: &Failure, output: Output) {
    if failure.is_worth_telling() {
        match output {
            Output::Table => note(failure.text().trim_end()),
            Output::Json => note(&failure.json()),
        }
    }
}

/// Colours are for terminals whose owner has not declined them.
pub(super) fn paint(to: &impl std::io::IsTerminal) -> Paint {
    let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if to.is_terminal() && !declined { Paint::Colours } else { Paint::Plain }
}

/// Whether people watch stderr, so that symbols say more than words.
pub(super) fn stderr_is_watched() -> bool {
    std::io::stderr().is_terminal()
}

fn json<M: Named>(message: &M, layout: Layout) -> Result<String, Failure> {
    let broken = |why: String| Failure::local(format!("{} has no JSON form: {why}", M::NAME));
    let descriptor = descriptors()
        .map_err(|error| broken(error.to_string()))?
        .get_message_by_name(M::NAME)
        .ok_or_else(|| broken("it is not in the descriptor set".to_owned()))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| broken(error.to_string()))?;
    let mut bytes = Vec::new();
    let options = SerializeOptions::new();
    match layout {
        Layout::Indented => dynamic.serialize_with_options(&mut serde_json::Serializer::pretty(&mut bytes), &options),
        Layout::Line => dynamic.serialize_with_options(&mut serde_json::Serializer::new(&mut bytes), &options),
    }
    .map_err(|error| broken(error.to_string()))?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|error| broken(error.to_string()))
}

/// The public contract and the health protocol beside it.
fn descriptors() -> Result<DescriptorPool, prost_reflect::DescriptorError> {
    let mut pool = DescriptorPool::decode(crate::proto::DESCRIPTOR_SET)?;
    pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)?;
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;
    use prost_types::{Duration, Timestamp};

    #[test]
    fn every_response_is_in_the_descriptor_set() {
        let pool = descriptors().unwrap();
        for name in super::super::named::ALL {
            assert!(pool.get_message_by_name(name).is_some(), "{name}");
        }
        assert!(pool.get_message_by_name(tonic_health::pb::HealthCheckResponse::NAME).is_some());
    }

    #[test]
    fn json_is_proto3_json() {
        let key = v1::Key {
            key_id: "k1".to_owned(),
            key_spec: v1::KeySpec::SymmetricDefault.into(),
            create_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 500_000_000 }),
            uses: 1 << 40,
            current_version: 1,
            nodes: vec![v1::KeyOnHsm { proof: v1::KeyProof::Used.into(), ..Default::default() }],
            ..Default::default()
        };
        let line = json(&v1::DescribeKeyResponse { key: Some(key) }, Layout::Line).unwrap();
        assert_eq!(
            line,
            concat!(
                r#"{"key":{"keyId":"k1","keySpec":"KEY_SPEC_SYMMETRIC_DEFAULT","createTime":"2023-11-14T22:13:20.500Z","#,
                r#""currentVersion":1,"nodes":[{"proof":"KEY_PROOF_USED"}],"uses":"1099511627776"}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn bytes_are_base64_and_durations_have_a_unit() {
        let encrypted = v1::EncryptResponse { ciphertext: vec![0xfb, 0xff], ..Default::default() };
        assert_eq!(json(&encrypted, Layout::Line).unwrap(), "{\"ciphertext\":\"+/8=\"}\n");
        let hsm = v1::Hsm { latency_p50: Some(Duration { seconds: 0, nanos: 2_500_000 }), ..Default::default() };
        let clusters = v1::DescribeClustersResponse {
            clusters: vec![v1::Cluster { hsms: vec![hsm], ..Default::default() }],
            ..Default::default()
        };
        let line = json(&clusters, Layout::Line).unwrap();
        assert_eq!(line, "{\"clusters\":[{\"hsms\":[{\"latencyP50\":\"0.002500s\"}]}]}\n");
    }

    #[test]
    fn an_empty_response_is_an_empty_object() {
        assert_eq!(json(&v1::DeleteKeyStoreResponse {}, Layout::Indented).unwrap(), "{}\n");
    }
}
