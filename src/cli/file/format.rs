//! The format of an encrypted file: a header, and chunks that are each bound to it, to their place, and to being the last
//! one or not. Pure, and final.
//!
//! ```text
//!   "KWF" 01 │ length, encrypted data key │ length, encryption context │ chunk 0 │ chunk 1 │ … │ last chunk
//!   chunk   = AES-256-GCM of at most 64 KiB of the file, and its tag
//!   nonce   = the chunk's number, 11 bytes │ 00, or 01 for the last one
//!   AAD     = SHA-256 of all before chunk 0
//! ```
//!
//! No nonce is used twice, since each file has a data key of its own. `docs/formats.md` says the same for whoever needs a
//! way out without keyway.

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest;
use zeroize::Zeroizing;

use crate::model::{EncryptionContext, Plaintext};

const MAGIC: [u8; 3] = *b"KWF";
const FORMAT: u8 = 1;
/// How much of the file each chunk but the last has.
pub(super) const CHUNK: usize = 64 * 1024;
const TAG: usize = 16;
/// The longest ciphertext that the API knows.
const LONGEST_DATA_KEY: usize = 6_144;
/// AES-GCM is safe for as many under one key, whatever the nonces.
const MOST_CHUNKS: u64 = 1 << 32;

/// Why a file could not be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("it does not begin as a file that keyway encrypted")]
    NotOurs,
    #[error("it was changed, cut, or added to since it was encrypted")]
    Damaged,
    #[error("it is longer than 256 TiB, the most that one data key is good for")]
    TooLong,
    #[error("{0}")]
    Read(io::Error),
    #[error("{0}")]
    Write(io::Error),
}

/// What stands before the chunks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Encrypted, as the daemon gave it.
    pub(super) data_key: Vec<u8>,
    /// What the data key's ciphertext is bound to, and so the file.
    pub(super) context: EncryptionContext,
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &[FORMAT]].concat();
        for part in [&self.data_key, &self.context.canonical()] {
            let length = u16::try_from(part.len()).expect("both have bounds below");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// Reads no further than the header goes. Proves nothing about it: that needs the data key, which is the daemon's to give.
    pub(super) fn read(from: &mut impl Read) -> Result<Self, Broken> {
        let mut start = [0; MAGIC.len() + 1];
        read_all(from, &mut start)?;
        if start[..MAGIC.len()] != MAGIC || start[MAGIC.len()] != FORMAT {
            return Err(Broken::NotOurs);
        }
        let data_key = read_part(from, LONGEST_DATA_KEY)?;
        let context = read_part(from, EncryptionContext::LONGEST_CANONICAL)?;
        let context = EncryptionContext::from_canonical(&context).ok_or(Broken::NotOurs)?;
        Ok(Self { data_key, context })
    }
}

fn read_part(from: &mut impl Read, longest: usize) -> Result<Vec<u8>, Broken> {
    let mut length = [0; 2];
    read_all(from, &mut length)?;
    let length = usize::from(u16::from_be_bytes(length));
    if !(1..=longest).contains(&length) {
        return Err(Broken::NotOurs);
    }
    let mut part = vec![0; length];
    read_all(from, &mut part)?;
    Ok(part)
}

fn read_all(from: &mut impl Read, bytes: &mut [u8]) -> Result<(), Broken> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Broken::NotOurs,
        _ => Broken::Read(error),
    })
}

/// Writes the header and the chunks. `passed` is told how many bytes of the file each chunk was.
pub(super) fn encrypt(
    header: &Header,
    data_key: &Plaintext,
    from: impl Read,
    mut to: impl Write,
    mut passed: impl FnMut(usize),
) -> Result<(), Broken> {
    let head = header.bytes();
    let key = ChunkKey::new(&head, data_key)?;
    to.write_all(&head).map_err(Broken::Write)?;
    let mut chunks = Chunks::new(from, CHUNK)?;
    while let Some((place, chunk)) = chunks.next()? {
        let length = chunk.len();
        key.seal(place, chunk)?;
        to.write_all(chunk).map_err(Broken::Write)?;
        passed(length);
    }
    to.flush().map_err(Broken::Write)
}

/// Reads the chunks that follow a header, and writes what they hold, each only once it is proved. What was written when this
/// fails is the file's beginning.
pub(super) fn decrypt(
    header: &Header,
    data_key: &Plaintext,
    from: impl Read,
    mut to: impl Write,
    mut passed: impl FnMut(usize),
) -> Result<(), Broken> {
    let key = ChunkKey::new(&header.bytes(), data_key)?;
    let mut chunks = Chunks::new(from, CHUNK + TAG)?;
    while let Some((place, chunk)) = chunks.next()? {
        key.open(place, chunk)?;
        // An empty one is written for an empty file alone.
        if chunk.is_empty() && place.number > 0 {
            return Err(Broken::Damaged);
        }
        to.write_all(chunk).map_err(Broken::Write)?;
        passed(chunk.len());
    }
    to.flush().map_err(Broken::Write)
}

/// Where a chunk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    number: u64,
    is_last: bool,
}

impl Place {
    fn nonce(self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.number.to_be_bytes());
        nonce[11] = self.is_last.into();
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The file's data key, bound to its header.
struct ChunkKey {
    key: LessSafeKey,
    header: digest::Digest,
}

impl ChunkKey {
    fn new(header: &[u8], data_key: &Plaintext) -> Result<Self, Broken> {
        // A daemon that opens another thing than a data key was given another thing.
        let key = UnboundKey::new(&AES_256_GCM, data_key.expose()).map_err(|_| Broken::Damaged)?;
        Ok(Self { key: LessSafeKey::new(key), header: digest::digest(&digest::SHA256, header) })
    }

    fn seal(&self, place: Place, chunk: &mut Vec<u8>) -> Result<(), Broken> {
        let sealed = self.key.seal_in_place_append_tag(place.nonce(), Aad::from(self.header), chunk);
        sealed.map_err(|_| Broken::TooLong)
    }

    fn open(&self, place: Place, chunk: &mut Vec<u8>) -> Result<(), Broken> {
        let opened = self.key.open_in_place(place.nonce(), Aad::from(self.header), chunk);
        let length = opened.map_err(|_| Broken::Damaged)?.len();
        chunk.truncate(length);
        Ok(())
    }
}

/// A stream in chunks of one length, the last one perhaps shorter: one is read ahead, to know which is the last. An empty
/// stream is one empty chunk.
struct Chunks<R> {
    from: R,
    length: usize,
    this: Zeroizing<Vec<u8>>,
    ahead: Zeroizing<Vec<u8>>,
    number: u64,
    ended: bool,
}

impl<R: Read> Chunks<R> {
    fn new(from: R, length: usize) -> Result<Self, Broken> {
        // Room for a tag, and for the end of the stream to be noticed: buffers that grow would leave copies behind.
        let buffer = || Zeroizing::new(Vec::with_capacity(length + TAG + 64));
        let (this, ahead) = (buffer(), buffer());
        let mut chunks = Self { from, length, this, ahead, number: 0, ended: false };
        chunks.read_ahead()?;
        Ok(chunks)
    }

    fn next(&mut self) -> Result<Option<(Place, &mut Vec<u8>)>, Broken> {
        if self.ended {
            return Ok(None);
        }
        std::mem::swap(&mut self.this, &mut self.ahead);
        self.ahead.clear();
        // A stream that has ended is not asked again: a terminal would wait for more.
        if self.this.len() == self.length {
            self.read_ahead()?;
        }
        self.ended = self.ahead.is_empty();
        let place = Place { number: self.number, is_last: self.ended };
        self.number += 1;
        if self.number > MOST_CHUNKS { Err(Broken::TooLong) } else { Ok(Some((place, &mut *self.this))) }
    }

    fn read_ahead(&mut self) -> Result<(), Broken> {
        let mut chunk = self.from.by_ref().take(self.length as u64);
        chunk.read_to_end(&mut self.ahead).map_err(Broken::Read).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const DATA_KEY: [u8; 32] = [7; 32];

    fn header() -> Header {
        let context = EncryptionContext::new([("order".to_owned(), "1234".to_owned())]).unwrap();
        Header { data_key: b"the data key, encrypted".to_vec(), context }
    }

    fn encrypted(plaintext: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        encrypt(&header(), &Plaintext::new(DATA_KEY.to_vec()), plaintext, &mut file, |_| ()).unwrap();
        file
    }

    /// With a daemon that gives the data key for whatever header there is: what is refused is so by the file alone. What was
    /// written in any case, and what came of it.
    fn decrypted(mut file: &[u8]) -> (Vec<u8>, Result<(), Broken>) {
        let mut plaintext = Vec::new();
        let done = Header::read(&mut file)
            .and_then(|read| decrypt(&read, &Plaintext::new(DATA_KEY.to_vec()), file, &mut plaintext, |_| ()));
        (plaintext, done)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 251 + at) as u8).collect()
    }

    /// Three chunks, the last one short.
    static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| encrypted(&bytes(2 * CHUNK + 100)));

    /// Nothing but what is the file's own may have been written.
    fn must_be_refused(file: &[u8]) {
        let (written, done) = decrypted(file);
        assert!(matches!(done, Err(Broken::NotOurs | Broken::Damaged)), "{done:?}");
        assert!(bytes(2 * CHUNK + 100).starts_with(&written));
        assert!(written.len() < 2 * CHUNK + 100, "all of it was given out before it was found to be changed");
    }

    /// They were made by a program in another language, from `docs/formats.md`. What no release may change.
    #[test]
    fn golden_files_are_made_byte_by_byte_and_open() {
        #[derive(serde::Deserialize)]
        struct Golden {
            cases: Vec<Case>,
        }
        #[derive(serde::Deserialize)]
        struct Case {
            name: String,
            data_key: String,
            encrypted_data_key: String,
            context: std::collections::BTreeMap<String, String>,
            header: String,
            plaintext_length: usize,
            file_length: usize,
            file_sha256: String,
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let unhex = |text: &str| -> Vec<u8> {
            text.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        };
        let golden: Golden = serde_json::from_str(include_str!("../../../tests/golden/file-v1.json")).unwrap();
        assert!(golden.cases.len() >= 4);
        for case in golden.cases {
            let context = EncryptionContext::new(case.context).unwrap();
            let header = Header { data_key: unhex(&case.encrypted_data_key), context };
            assert_eq!(hex(&header.bytes()), case.header, "{}", case.name);
            let plaintext: Vec<u8> = (0..case.plaintext_length).map(|at| (at % 251) as u8).collect();
            let (data_key, mut file) = (Plaintext::new(unhex(&case.data_key)), Vec::new());
            encrypt(&header, &data_key, plaintext.as_slice(), &mut file, |_| ()).unwrap();
            let sum = hex(digest::digest(&digest::SHA256, &file).as_ref());
            assert_eq!((file.len(), sum), (case.file_length, case.file_sha256), "{}", case.name);
            let (mut rest, mut back) = (file.as_slice(), Vec::new());
            assert_eq!(Header::read(&mut rest).unwrap(), header, "{}", case.name);
            decrypt(&header, &data_key, rest, &mut back, |_| ()).unwrap();
            assert!(back == plaintext, "{}", case.name);
        }
    }

    #[test]
    fn lengths_around_the_bounds_of_chunks_come_back_and_cost_a_tag_a_chunk() {
        for length in [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1] {
            let file = encrypted(&bytes(length));
            let chunks = length.div_ceil(CHUNK).max(1);
            assert_eq!(file.len(), header().bytes().len() + length + chunks * TAG);
            let (plaintext, done) = decrypted(&file);
            done.unwrap();
            assert!(plaintext == bytes(length), "{length}");
        }
    }

    #[test]
    fn a_reader_that_gives_little_at_a_time_makes_the_same_file() {
        struct Little<'a>(&'a [u8]);
        impl Read for Little<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let length = into.len().min(977);
                self.0.read(&mut into[..length])
            }
        }
        let plaintext = bytes(2 * CHUNK + 100);
        let mut file = Vec::new();
        encrypt(&header(), &Plaintext::new(DATA_KEY.to_vec()), Little(&plaintext), &mut file, |_| ()).unwrap();
        assert!(file == *FILE);
    }

    #[test]
    fn chunks_that_are_exchanged_repeated_left_out_or_added_are_noticed() {
        let head = header().bytes().len();
        let (first, rest) = FILE[head..].split_at(CHUNK + TAG);
        let (second, third) = rest.split_at(CHUNK + TAG);
        let orders: [&[&[u8]]; 10] = [
            &[second, first, third],
            &[first, second, second, third],
            &[first, third],
            &[second, third],
            &[first, second],
            &[first],
            &[],
            &[first, second, third, b"x"],
            &[first, second, third, third],
            &[third],
        ];
        for order in orders {
            must_be_refused(&[&FILE[..head], &order.concat()].concat());
        }
        // Of another file with the same key and length, which there is not, but for its header.
        let other = Header { data_key: b"the data key, encryptee".to_vec(), ..header() };
        let mut file = Vec::new();
        let key = Plaintext::new(DATA_KEY.to_vec());
        encrypt(&other, &key, bytes(2 * CHUNK + 100).as_slice(), &mut file, |_| ()).unwrap();
        must_be_refused(&[&FILE[..head], &file[head..]].concat());
    }

    #[test]
    fn a_file_that_is_cut_anywhere_near_a_border_is_noticed() {
        let (head, chunk) = (header().bytes().len(), CHUNK + TAG);
        let borders = [0, head, head + TAG, head + chunk, head + 2 * chunk, FILE.len()];
        for cut in borders.into_iter().flat_map(|border| border.saturating_sub(20)..(border + 20).min(FILE.len())) {
            must_be_refused(&FILE[..cut]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_length_comes_back(length in 0..3 * CHUNK) {
            let (plaintext, done) = decrypted(&encrypted(&bytes(length)));
            prop_assert!(done.is_ok());
            prop_assert!(plaintext == bytes(length));
        }

        #[test]
        fn any_bit_flipped_anywhere_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut file = FILE.clone();
            let at = at.index(file.len());
            file[at] ^= 1_u8 << bit;
            must_be_refused(&file);
        }

        #[test]
        fn any_bit_flipped_in_the_header_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut file = FILE.clone();
            file[at.index(header().bytes().len())] ^= 1_u8 << bit;
            must_be_refused(&file);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(garbage in prop::collection::vec(any::<u8>(), 0..300), ours in any::<bool>()) {
            let file = if ours { [&b"KWF\x01"[..], &garbage].concat() } else { garbage };
            prop_assert!(decrypted(&file).1.is_err());
        }
    }
}
