//! Length-prefixed prost messages: a big-endian `u32`, then that many bytes.

use prost::Message;

/// The longest message either end accepts, in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// The stream cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    #[error("a frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    #[error("a frame is not a message")]
    Undecodable(#[from] prost::DecodeError),
}

/// Appends one message to `out`.
///
/// # Errors
/// [`BadFrame::TooLong`]; `out` is left as it was.
pub fn push(message: &impl Message, out: &mut Vec<u8>) -> Result<(), BadFrame> {
    let length = message.encoded_len();
    if length > MAX_FRAME {
        return Err(BadFrame::TooLong(length));
    }
    let prefix = u32::try_from(length).expect("MAX_FRAME fits");
    out.reserve(4 + length);
    out.extend_from_slice(&prefix.to_be_bytes());
    message.encode(out).expect("a Vec grows");
    Ok(())
}

/// Takes whole messages out of bytes as they arrive. Wiped when dropped: requests carry plaintexts and PINs.
#[derive(Default)]
pub struct Frames {
    bytes: zeroize::Zeroizing<Vec<u8>>,
    taken: usize,
}

impl Frames {
    /// Adds bytes that were read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.compact();
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, `None` until more bytes have come.
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, BadFrame> {
        let waiting = &self.bytes[self.taken..];
        let Some((prefix, rest)) = waiting.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).expect("usize holds a u32");
        if length > MAX_FRAME {
            return Err(BadFrame::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let message = M::decode(frame)?;
        self.taken += 4 + length;
        Ok(Some(message))
    }

    /// Whether a whole message is waiting, so that taking it will not need another read.
    pub fn has_next(&self) -> bool {
        let waiting = &self.bytes[self.taken..];
        waiting
            .split_first_chunk::<4>()
            .is_some_and(|(prefix, rest)| rest.len() >= u32::from_be_bytes(*prefix) as usize)
    }

    fn compact(&mut self) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        } else if self.taken > 64 * 1024 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::v1::{Request, request::Verb};
    use proptest::prelude::*;

    fn random(id: u64, bytes: u32) -> Request {
        Request {
            id,
            remaining_ms: 5,
            verb: Some(Verb::GenerateRandom(crate::link::v1::GenerateRandom { number_of_bytes: bytes })),
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_stream(ids in prop::collection::vec(any::<u64>(), 1..20), cut in 1usize..40) {
            let mut stream = Vec::new();
            for id in &ids {
                push(&random(*id, 32), &mut stream).unwrap();
            }
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for piece in stream.chunks(cut) {
                frames.feed(piece);
                while let Some(request) = frames.take::<Request>().unwrap() {
                    seen.push(request.id);
                }
            }
            prop_assert_eq!(seen, ids);
            prop_assert!(!frames.has_next());
        }

        #[test]
        fn a_frame_of_garbage_is_a_message_or_an_error_and_takes_nothing_of_the_next(
            garbage in prop::collection::vec(any::<u8>(), 0..200),
            id in any::<u64>(),
        ) {
            let mut stream = u32::try_from(garbage.len()).unwrap().to_be_bytes().to_vec();
            stream.extend_from_slice(&garbage);
            push(&random(id, 32), &mut stream).unwrap();
            let mut frames = Frames::default();
            frames.feed(&stream);
            if let Ok(message) = frames.take::<crate::link::v1::Response>() {
                prop_assert!(message.is_some(), "all of it was there");
                prop_assert_eq!(frames.take::<Request>().unwrap().map(|request| request.id), Some(id));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::default();
            frames.feed(&bytes);
            while let Ok(Some(_)) = frames.take::<Request>() {}
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let mut frames = Frames::default();
        frames.feed(&u32::MAX.to_be_bytes());
        assert!(matches!(frames.take::<Request>(), Err(BadFrame::TooLong(_))));
        let long = crate::link::v1::Opaque { bytes: vec![0; MAX_FRAME + 1] };
        assert!(matches!(push(&long, &mut Vec::new()), Err(BadFrame::TooLong(_))));
    }
}
